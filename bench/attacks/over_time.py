"""What turns on time and state: riding a connection after revocation, impairing the agent, flooding a state table."""

from __future__ import annotations

import time
from dataclasses import replace

from bench.attacks.ground import ROOT, Ground, Service
from bench.attacks.technique import Came, NotHereError, Technique, came
from lab.hosts.attempts import Actor
from lab.model import Flow, Policy
from lab.policy import decide

_TABLE = "/proc/sys/net/netfilter/nf_conntrack"
FLOOD_S = 3.0
HONEST = 20
TRIES, PAUSE_S = 5, 0.2


def _ride(ground: Ground) -> Came:
    """A connection is opened while it is allowed; the rule goes; the connection is used again."""
    actor = ground.foothold
    service = next((one for one in ground.configured(actor.host) if ground.allowed(actor, one)), None)
    if service is None:
        raise NotHereError("the foothold may call nothing")
    without = _without(ground, actor, service)
    with ground.running(actor.host, actor.process, "hold", service[0], str(service[1])) as held:
        if not held.said()["ready"]:
            raise NotHereError(f"{ground.name(service[0])} did not answer while it was still allowed")
        with ground.revoke(without):
            fresh = ground.opens(actor, service)
            held.tell()
            alive = bool(held.said()["alive"])
    return came(alive, f"the old connection {'answers' if alive else 'is dead'}, a new one "
                       f"{'opens' if fresh else 'does not open'}")


def _without(ground: Ground, actor: Actor, service: Service) -> Policy:
    """The scenario's policy without the rules that allow this."""
    host = ground.topology.hosts[ground.name(service[0])]
    flow = Flow(actor.host, actor.process, actor.user, host.name, ground.listens(host, "tcp", service[1]), "tcp",
                service[1], 4)
    policy = ground.scenario.policy
    while (verdict := decide(policy, flow, ground.topology)).allow and verdict.rule != "default":
        policy = replace(policy, rules=tuple(rule for rule in policy.rules if rule.name != verdict.rule))
    return policy


def _flood(ground: Ground) -> Came:
    """Connection requests from every port, by a way that is allowed; meanwhile one that is denied is tried."""
    here = ground.topology.hosts[ground.foothold.host]
    service = next((one for one in ground.configured(here.name) if ground.allowed(ground.foothold, one)), None)
    if service is None:
        raise NotHereError("the foothold may call nothing")
    denied = _denied(ground)
    honest, target = _honest(ground, here.name)
    with ground.running(here.name, ROOT, "flood", here.v4, service[0], str(service[1]), f"{FLOOD_S:g}",
                        ready=True) as tool:
        through, failed, most, said = 0, 0, 0, None
        while said is None:
            through += ground.opens(ground.dropped(here.name), denied)
            if honest:
                failed += sum(one.outcome != "OPEN" for one in ground.probe(honest, [target] * HONEST))
            most = max(most, _states(ground))
            said = tool.heard(0.05)
    room = int(ground.testbed.run(ground.topology.router, ["cat", f"{_TABLE}_max"]).stdout or 0)
    words = (f"{said['sent'] - said['refused']:,} of {said['sent']:,} requests went out; the router held {most:,} "
             f"of at most {room:,} states")
    if honest:
        words += f"; {failed} honest connections failed"
    return came(bool(through), f"what is denied {'got through' if through else 'stayed shut'}; {words}")


def _denied(ground: Ground) -> Service:
    """Something behind that is denied to the whole host, whatever asks: whom a held host calls."""
    here = ground.foothold.host
    for name in ground.known.held:
        for service in ground.configured(name):
            if not any(ground.allowed(actor, service) for actor in (ground.foothold, ground.dropped(here))):
                return service
    raise NotHereError("no held host calls anything that is denied to the foothold")


def _honest(ground: Ground, besides: str) -> tuple[Actor | None, Service]:
    """Somebody else's allowed connection across segments, which should go on."""
    hosts = ground.topology.hosts
    for source in hosts.values():
        for process in source.runs:
            actor = ground.actor(source.name, process)
            for target in hosts.values():
                if source.name in ground.known.held or besides in (source.name, target.name) \
                        or source.segment == target.segment:
                    continue
                for name in target.runs:
                    for s in ground.topology.processes[name].listens:
                        if s.proto == "tcp" and ground.allowed(actor, (target.v4, s.low)):
                            return actor, (target.v4, s.low)
    return None, ("", 0)


def _states(ground: Ground) -> int:
    shown = ground.testbed.run(ground.topology.router, ["cat", f"{_TABLE}_count"])
    return int(shown.stdout or 0)


# --- impairing --------------------------------------------------------------------------------

# Everything that is neither the host's first process nor one of labctl's own services nor this shell.
_KILL = """
for p in /proc/[0-9]*; do
  id=${p#/proc/}
  if [ "$id" != 1 ] && [ "$id" != $$ ] && [ -s "$p/cmdline" ] \\
     && ! tr '\\0' ' ' <"$p/cmdline" | grep -q ' serve --control'
  then kill -9 "$id" && echo "$id"; fi
done 2>/dev/null
"""
_UNLOAD = "nft flush ruleset; for dev in eth0 lo; do tc qdisc del dev $dev clsact; done 2>/dev/null; true"


def _kill(ground: Ground) -> Came:
    """Every process of the host that labctl's own services do not need, and its agent wherever the lab has it run."""
    ended = len(ground.testbed.run(ground.foothold.host, ["/bin/sh", "-c", _KILL]).stdout.split()) + ground.end_agents()
    return _still(ground, ground.foothold.host, f"{ended} processes ended")


def _unload(ground: Ground) -> Came:
    """On the foothold's host, whose agent may be dead by now: what is left is what it put into the kernel."""
    ground.testbed.run(ground.foothold.host, ["/bin/sh", "-c", _UNLOAD])
    unpinned = ground.unpin()
    return _still(ground, ground.foothold.host,
                  f"firewall rules flushed, queues' programs removed, {unpinned} pinned programs and maps let go")


def _still(ground: Ground, host: str, done: str) -> Came:
    """Whether what is denied opens now, to a host that no agent of its own guards."""
    outside = ground.outside()
    _process, port = ground.serves(outside, "tcp")
    opened = False
    for _ in range(TRIES):  # what was let go of takes the kernel a moment
        if opened := ground.opens(ground.dropped(host), (outside.v4, port)):
            break
        time.sleep(PAUSE_S)
    return came(opened, f"{done}; {outside.name}:{port} {'opens' if opened else 'stays shut'}")


TECHNIQUES = (
    Technique("riding", "T1563", "Riding an established connection after revocation",
              "a connection was opened while the policy allowed it", "the service answers over it after the update",
              _ride),
    Technique("flood", "T1499.001", "Flooding the state table", "root on the host",
              "an attempt that the policy denies opened meanwhile", _flood),
    Technique("kill-agent", "T1562.001", "Impairing the agent: ending it", "root on the host",
              "a connection to an external host that the policy denies opened", _kill),
    Technique("flush-firewall", "T1562.004", "Impairing the agent: its rules", "root on the host",
              "a connection to an external host that the policy denies opened", _unload),
)
