"""`labctl churn`: hosts that appear, move and vanish while each arm stands, and how long it takes to follow them.

In every round one host joins with the labels and programs of one that the scenario has, moves to another address, and
is switched off; another, with the same programs but neither label nor agent, takes its address at once. Each time
labctl is told, compiles the policy for the hosts that there are now, and delivers what changed. The clock starts when
it is told.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from threading import Event

from bench import drill
from bench.analysis import churning, watched
from bench.analysis.beats import TIMEOUT_S
from bench.analysis.churning import STEPS, ArmReport, Report, Spread, Step
from bench.contract import Guarded
from bench.drill import BASELINE, Drill
from bench.instruments.pulse import Pulse
from lab.addresses import mac
from lab.backends.mininet_churn import Joined, joining, with_host, without
from lab.deploy import live
from lab.deploy.live import Delivered, LiveEnforcement
from lab.faults import FaultError
from lab.model import Deployment, Flow, Host, Outcome, Scenario, Topology
from lab.policy import iter_flows

NEWCOMER, HEIR = "newcomer", "heir"  # the heir takes the address that the newcomer leaves
WATCH_S, CALM_S = 5.0, 0.4  # how long at most, after the delivery; and how much of calm is the end
ALLOWED, DENIED = 4, 6


@dataclass(frozen=True, slots=True)
class Plan:
    """One round, the same under every arm: who joins, where it moves, who inherits, and what is watched."""

    number: int
    like: str
    newcomer: Host
    moved: Host
    heir: Host
    denied: tuple[Flow, ...]
    allowed: tuple[Flow, ...]
    stale: tuple[Flow, ...]


# --- the plan, pure --------------------------------------------------------------------------------


def plans(scenario: Scenario, rounds: int) -> Iterator[Plan]:
    """Every round by the scenario's seed. Raises FaultError where no host of it could be joined by another like it."""
    for number in range(rounds):
        rng = random.Random(f"{scenario.seed}/{number}")
        candidates = [host for host in scenario.topology.hosts.values() if host.takes_agent and host.runs]
        rng.shuffle(candidates)
        found = next((plan for like in candidates if (plan := _plan(scenario, like, number, rng))), None)
        if found is None:
            raise FaultError(f"{scenario.name}: no host that takes an agent has both an allowed and a denied flow to "
                             "a declared service of others; there is nobody for a newcomer to be like")
        yield found


def _plan(scenario: Scenario, like: Host, number: int, rng: random.Random) -> Plan | None:
    topology, seed = scenario.topology, rng.randrange(2**31)
    addresses = _free(topology, like.segment, rng)
    if len(addresses) < 3:
        return None
    macs = [mac(0x10000 + 2 * number + index) for index in range(2)]
    at = [{"v4": v4, "v6": v6} for v4, v6 in addresses]
    newcomer = replace(like, name=NEWCOMER, mac=macs[0], v4=at[0]["v4"], v6=at[0]["v6"])
    moved = replace(newcomer, v4=at[1]["v4"], v6=at[1]["v6"])
    heir = replace(like, name=HEIR, mac=macs[1], v4=at[2]["v4"], v6=at[2]["v6"], labels={}, agent="impossible")
    denied, allowed = _watched(scenario, newcomer, seed)
    theirs = replace(heir, v4=moved.v4, v6=moved.v6)
    inherited = [_renamed(flow) for flow in _all(scenario, newcomer, True)]
    verdicts = drill.intended(scenario.policy, with_host(topology, theirs), inherited)
    stale = watched.choose({f: False for f, allow in verdicts.items() if not allow}, with_host(topology, theirs), seed)
    if not denied or not allowed or not stale:
        return None
    return Plan(number, like.name, newcomer, moved, heir, denied, allowed, stale[:DENIED])


def _watched(scenario: Scenario, host: Host, seed: int) -> tuple[tuple[Flow, ...], tuple[Flow, ...]]:
    """Denied and allowed flows between a newcomer and others."""
    topology = with_host(scenario.topology, host)
    verdicts = {flow: allow for allow in (True, False) for flow in _all(scenario, host, allow)}
    chosen = watched.choose(verdicts, topology, seed, ALLOWED, DENIED)
    return tuple(f for f in chosen if not verdicts[f]), tuple(f for f in chosen if verdicts[f])


def _all(scenario: Scenario, host: Host, allow: bool) -> list[Flow]:
    """Every flow between this host and others that the policy allows, or denies."""
    topology = with_host(scenario.topology, host)
    about = [flow for flow in iter_flows(replace(scenario, topology=topology))
             if (flow.source == host.name) != (flow.target == host.name)]
    return [flow for flow, verdict in drill.intended(scenario.policy, topology, about).items() if verdict is allow]


def _renamed(flow: Flow) -> Flow:
    """The same, of whoever took the newcomer's place."""
    return replace(flow, source=HEIR if flow.source == NEWCOMER else flow.source,
                   target=HEIR if flow.target == NEWCOMER else flow.target)


def _free(topology: Topology, segment: str, rng: random.Random) -> list[tuple[str, str]]:
    """Three pairs of addresses of a segment that nobody has, or fewer."""
    where = topology.segments[segment]
    taken = {ip_address(text) for host in topology.hosts.values() for text in (host.v4, host.v6)}
    taken |= {ip_address(where.gateway4), ip_address(where.gateway6)}
    v4, v6 = ip_network(where.v4), ip_network(where.v6)
    offsets = rng.sample(range(2, min(v4.num_addresses - 1, v6.num_addresses, 4096)),
                         k=min(64, min(v4.num_addresses - 1, v6.num_addresses, 4096) - 2))
    pairs = [(v4[offset], v6[offset]) for offset in offsets]
    return [(str(one), str(two)) for one, two in pairs if one not in taken and two not in taken][:3]


# --- carrying it out -------------------------------------------------------------------------------


def measure(it: Drill, names: Sequence[str], rounds: int) -> Report:
    """Every arm through every round; the baseline first, as the positive control of what is watched."""
    scenario = it.scenario
    if any(scenario.topology.tenants):
        raise FaultError(f"{scenario.name}: has tenants, and movers cannot go from one to another; churn needs none")
    arms, unsupported = drill.supported(scenario, names)
    planned = tuple(plans(scenario, rounds))
    open_then: dict[tuple[int, str], frozenset[Flow]] = {}
    found = {}
    with joining(it.testbed) as joined:
        for name, enforcer in arms.items():
            native = enforcer.compile(scenario.policy, scenario.topology)
            deployment = enforcer.render(native, scenario.topology)
            if reason := live.updatable(deployment):
                unsupported[name] = reason
                continue
            found[name] = _through(it, joined, name, enforcer, (deployment, native.neighbours == "asked"), planned,
                                   open_then)
    words = tuple(f"like {plan.like}, {plan.newcomer.v4}, then {plan.moved.v4}" for plan in planned)
    lost = sum(len({*plan.denied, *plan.allowed} - open_then[plan.number, "appear"]) for plan in planned)
    notes = (f"{lost} flows were not open with nothing enforced, and were not watched",) if lost else ()
    return Report(scenario.name, scenario.seed, rounds, found, unsupported, words, notes)


def _through(it: Drill, joined: Joined, name: str, enforcer: Guarded, first: tuple[Deployment, bool],
             planned: Sequence[Plan], open_then: dict[tuple[int, str], frozenset[Flow]]) -> ArmReport:
    arm = LiveEnforcement(it.testbed, name)
    steps: dict[str, list[Step]] = {step: [] for step in STEPS}
    unclaimed = 0
    try:
        arm.up(first[0], asked=first[1])
        for plan in planned:
            it.say(f"{name}: round {plan.number + 1} of {len(planned)}")
            turn = Round(it, joined, name, enforcer, arm, plan, open_then)
            for step in turn.run():
                steps[step.name].append(step)
            unclaimed += turn.unclaimed
    finally:
        arm.down(vanished=[n for n in (NEWCOMER, HEIR) if n not in it.testbed.topology.hosts])
    return ArmReport(len(planned), {k: tuple(v) for k, v in steps.items()}, spreads(steps), unclaimed)


def spreads(steps: Mapping[str, Sequence[Step]]) -> dict[str, Spread]:
    """The distribution of each figure over rounds; of a time the middle of its bounds."""
    found = {}
    for name, ones in steps.items():
        watched_ones = {"protected": [s for s in ones if s.denied], "served": [s for s in ones if s.allowed]}
        for figure, some in watched_ones.items():
            times = [getattr(s, figure) for s in some]
            found[f"{name}.{figure}"] = churning.spread([t and (t.low + t.high) / 2 for t in times])
        found[f"{name}.leaked"] = churning.spread([s.leaked / s.denied for s in watched_ones["protected"]])
        found[f"{name}.told_s"] = churning.spread([s.told_s for s in ones])
        for part in churning.PARTS:
            found[f"{name}.{part}"] = churning.spread([s.parts[part] for s in ones if part in s.parts])
    return found


@dataclass(slots=True)
class Round:
    """One round under one arm that stands for the scenario's own hosts, and does so again at its end."""

    it: Drill
    joined: Joined
    name: str
    enforcer: Guarded
    arm: LiveEnforcement
    plan: Plan
    open_then: dict[tuple[int, str], frozenset[Flow]]
    unclaimed: int = 0
    steps: list[Step] = field(default_factory=list)

    def run(self) -> list[Step]:
        """appear, move, depart."""
        plan, base = self.plan, self.it.scenario.topology
        self.joined.join(plan.heir)  # it stands by at an address of its own; nobody is told of it
        try:
            with Pulse(self.it.testbed.services, base, ()) as pulse:
                self.joined.join(plan.newcomer)
                self._step(pulse, "appear", with_host(base, plan.newcomer), plan.denied, plan.allowed)
                pulse.watch((), base)
                self.joined.move(plan.moved)
                self._step(pulse, "move", with_host(base, plan.moved), plan.denied, plan.allowed)
                pulse.watch((), base)
                self.joined.leave(NEWCOMER)
                self.joined.move(replace(plan.heir, v4=plan.moved.v4, v6=plan.moved.v6))
                self._step(pulse, "depart", base, plan.stale, (), vanished=(NEWCOMER,))
        finally:
            for name in (NEWCOMER, HEIR):
                if name in self.it.testbed.topology.hosts:
                    self.joined.leave(name)
        return self.steps

    def _step(self, pulse: Pulse, name: str, known: Topology, denied: Sequence[Flow], allowed: Sequence[Flow],
              vanished: Sequence[str] = ()) -> None:
        """Tell labctl of `known`, deliver what changes, watch until calm."""
        there = without(self.it.testbed.topology, HEIR) if name != "depart" else self.it.testbed.topology
        guarded, served = self._meant(name, there, denied, allowed)
        self.arm.unacquaint()
        told = time.monotonic()
        pulse.watch([*guarded, *served], there)
        parts, delivered = self._deliver(known, vanished)
        if self.name == BASELINE:
            self._control(pulse, name, told, [*guarded, *served])
        else:
            self._until_calm(pulse, guarded, served)
        beats = pulse.since(told)
        self._keep(name, beats, told)
        if self.name == BASELINE:  # it claims nothing: what is denied stays open for ever
            parts, delivered = dict.fromkeys(churning.PARTS, 0.0), Delivered()
        self.steps.append(churning.judge(name, beats, told, guarded, served, parts, delivered.points))

    def _meant(self, name: str, there: Topology, denied: Sequence[Flow],
               allowed: Sequence[Flow]) -> tuple[list[Flow], list[Flow]]:
        """Of these flows, those that were open with nothing enforced and that the arm claims; of the baseline all."""
        if self.name == BASELINE:
            return list(denied), list(allowed)
        known = self.open_then[self.plan.number, name]
        announced = drill.announced(self.enforcer, self.it.scenario.policy, there, [*denied, *allowed])
        guarded = [f for f in denied if f in known and not announced[f]]
        self.unclaimed += sum(announced[f] for f in denied if f in known)
        return guarded, [f for f in allowed if f in known and announced[f]]

    def _deliver(self, known: Topology, vanished: Sequence[str]) -> tuple[dict[str, float], Delivered]:
        begin = time.monotonic()
        native = self.enforcer.compile(self.it.scenario.policy, known)
        deployment = self.enforcer.render(native, known)
        compiled = time.monotonic() - begin
        done = self.arm.update(deployment, vanished)
        return {"compile_s": compiled, "place_s": done.place_s, "point_s": done.point_s,
                "ready_s": done.ready_s}, done

    def _until_calm(self, pulse: Pulse, guarded: Sequence[Flow], served: Sequence[Flow]) -> None:
        """Until what was tried in the last CALM_S, and has had its time, did as it is meant to; WATCH_S at most."""
        delivered = time.monotonic()
        while (now := time.monotonic()) < delivered + WATCH_S and (guarded or served):
            Event().wait(0.1)
            since = now - TIMEOUT_S - CALM_S
            if since >= delivered and churning.calm(pulse.since(since), since, guarded, served):
                return

    def _control(self, pulse: Pulse, name: str, told: float, flows: Sequence[Flow]) -> None:
        """Which of them open at all, with nothing enforced."""
        opened: frozenset[Flow] = frozenset()
        while time.monotonic() < told + WATCH_S and len(opened) < len(flows):
            Event().wait(0.05)
            opened = frozenset(b.flow for b in pulse.since(told) if b.outcome is Outcome.OPEN)
        self.open_then[self.plan.number, name] = opened

    def _keep(self, name: str, beats: Sequence[object], told: float) -> None:
        self.it.store.append("timeline", beats, arm=self.name, round=self.plan.number, step=name, told=told)
