"""What turns on time and state: riding a connection after revocation, impairing the agent, flooding a state table."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench.attacks.ground import Ground, Service
from bench.attacks.technique import Came, NotHereError, Technique, came
from lab.hosts.attempts import Actor
from lab.model import FAMILIES, Flow, Host, Policy
from lab.policy import decide

_TABLE = "/proc/sys/net/netfilter/nf_conntrack"
FLOOD, FLOOD_S = Path(__file__).with_name("flood.c"), 5.0
MOST_WAYS = 16
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
    """Requests from every port, by every way that is allowed; meanwhile denied and honest ones are tried."""
    here = ground.topology.hosts[ground.foothold.host]
    denied, (honest, target) = _denied(ground), _honest(ground, here.name)
    with contextlib.ExitStack() as others:
        held = others.enter_context(ground.running(honest.host, honest.process, "hold", target[0], str(target[1]))) \
            if honest else None
        stood = bool(held and held.said()["ready"])
        with ground.program(here.name, FLOOD, f"{FLOOD_S:g}", *_ways(ground, here)) as tool:
            through, failed, tried, most, said = 0, 0, 0, 0, None
            while said is None:
                through += ground.opens(ground.dropped(here.name), denied)
                if honest:
                    failed += sum(one.outcome != "OPEN" for one in ground.probe(honest, [target] * HONEST))
                    tried += HONEST
                most = max(most, _states(ground))
                said = tool.heard(0.05)
        words = f"{said['sent'] - said['refused']:,} of {said['sent']:,} packets went out; {_filled(ground, most)}"
        if honest:
            words += f"; {failed} of {tried} honest connections failed"
        if held and stood:
            held.tell()
            words += f", one from before {'lives on' if held.said()['alive'] else 'is dead'}"
    return came(bool(through), f"what is denied {'got through' if through else 'stayed shut'}; {words}")


def _ways(ground: Ground, here: Host) -> Iterator[str]:
    """Every service that the policy allows to some process of the host, over both families: 65,535 flows each."""
    hosts = ground.topology.hosts
    actors = [ground.actor(here.name, name) for name in here.runs]
    found = [(service.proto, target, port) for target in hosts.values() if target is not here for name in target.runs
             for service in ground.topology.processes[name].listens for port in (service.low,)
             if service.proto != "icmp" and any(ground.allowed(a, (target.v4, port), service.proto) for a in actors)]
    if not found:
        raise NotHereError("the foothold may call nothing")
    for proto, target, port in found[:MOST_WAYS]:
        for family in FAMILIES:
            yield from (str(proto), here.address(family), target.address(family), str(port))


def _filled(ground: Ground, most: int) -> str:
    room = int(ground.testbed.run(ground.topology.router, ["cat", f"{_TABLE}_max"]).stdout or 0)
    return f"the router held {most:,} of at most {room:,} states"


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
