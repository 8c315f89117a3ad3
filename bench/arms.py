"""One arm's once-per-run part: deployed, then asked everything that is not a cost. All of it raw, nothing judged."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from bench import second_look
from bench.instruments import attack as attacker
from bench.instruments import probe as prober
from bench.instruments import spoof
from bench.instruments.attack import Campaign
from bench.instruments.probe import Probed
from bench.instruments.spoof import Forgery
from bench.instruments.traffic import Traffic, TrafficWindow
from bench.second_look import Looked
from bench.store import ResultStore
from lab.backends.base import Enforcement, Installed, Testbed
from lab.backends.served import ServedTestbed
from lab.hosts.attempts import Actor
from lab.model import TRIED_AGAIN, Enforcer, Flow, Native, Point, Scenario, Sighting, Truth


@dataclass(slots=True)
class Arm:
    """An arm of the experiment: its enforcer, what it compiled to, and its place on the testbed."""

    name: str
    enforcer: Enforcer
    native: Native
    enforcement: Enforcement
    unsupported: str | None = None


@dataclass(frozen=True, slots=True)
class ArmRecord:
    """All that happened under one arm outside the cost blocks."""

    installed: Installed
    matrix: Probed
    campaign: Campaign | None
    traffic: TrafficWindow | None
    replayed: Probed
    truths: tuple[Truth, ...]
    sightings: tuple[Sighting, ...]
    notes: tuple[str, ...]
    daemon_rss_bytes: dict[str, int]
    daemon_cpu_s: dict[str, float]
    forged: tuple[tuple[Forgery, bool], ...] = ()  # each with whether it arrived
    looked: Looked = field(default_factory=lambda: Looked(()))  # what the second look held of the matrix


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask of every arm alike."""

    scenario: Scenario
    flows: Sequence[Flow]
    replay: Sequence[Flow]
    traffic_s: float
    forgeries: Sequence[Forgery] = ()


def examine(arm: Arm, plan: Plan, testbed: Testbed, traffic: Traffic | None, store: ResultStore,
            say: Callable[[str], None]) -> ArmRecord:
    """Deploy `arm`, run matrix, attack, traffic and replay under it, collect its telemetry, take it away."""
    topology, seed = plan.scenario.topology, plan.scenario.seed
    before = testbed.usage(memory=False)
    deployment = arm.enforcer.render(arm.native, topology)
    say("deploying")
    installed = arm.enforcement.install(arm.native, deployment)
    try:
        testbed.services.drain_events()
        say("matrix")
        matrix = prober.probe(testbed.services, prober.shuffled(plan.flows, seed), topology)
        store.append("observations", matrix.observations, arm=arm.name, phase="matrix")
        looked, again = _once_more(arm, matrix, plan, testbed, store, say)
        forged = _forged(arm, plan, testbed, store)
        campaign = None
        if plan.scenario.attack:
            say("attack")
            campaign = attacker.run(testbed.services, plan.scenario.attack, topology, seed)
            store.append("attack", campaign.steps, arm=arm.name)
            store.append("observations", campaign.observations, arm=arm.name, phase="attack")
        window = None
        if traffic and plan.scenario.traffic:
            say("traffic")
            window = traffic.run(plan.scenario.traffic.rate, plan.traffic_s)
        replayed = Probed((), ())
        if plan.replay:
            say("replay")
            replayed = prober.probe(testbed.services, prober.shuffled(plan.replay, seed), topology, kind="replay")
            store.append("observations", replayed.observations, arm=arm.name, phase="replay")
        calls = call_truths(testbed.services.drain_events(), plan.scenario)
        truths = (*matrix.truths, *again, *(campaign.truths if campaign else ()), *(window.truths if window else ()),
                  *replayed.truths, *calls)
        store.append("truth", truths, arm=arm.name)
        say("telemetry")
        sightings, notes = sighted(arm, store)
        after = testbed.usage()
    finally:
        arm.enforcement.down()
    cpu = {host: spent - before.daemon_cpu_s.get(host, 0.0) for host, spent in after.daemon_cpu_s.items()}
    return ArmRecord(installed, Probed(looked.observations, matrix.truths), campaign, window, replayed, truths,
                     sightings, notes, dict(after.daemon_rss_bytes), cpu, forged, looked)


def _once_more(arm: Arm, seen: Probed, plan: Plan, testbed: Testbed, store: ResultStore,
               say: Callable[[str], None]) -> tuple[Looked, tuple[Truth, ...]]:
    """What failed although the arm lets it through, tried again; what is held then, and the truth of every try."""
    topology = plan.scenario.topology
    suspected = second_look.suspects(arm.enforcer, arm.native, seen, topology)
    if not suspected.tries:
        return Looked(seen.observations), ()
    say(f"matrix, {len(suspected.flows):,} flows once more")
    alone, among = [], None
    for part in second_look.portions(testbed.services, suspected, topology):
        store.append("observations", part.observations, arm=arm.name, phase="alone")
        alone.append(part)
    if second_look.asks_for_a_crowd(suspected, alone):
        say(f"matrix, {len(suspected.let):,} flows at once once more")
        among = prober.probe(testbed.services, prober.shuffled(suspected.let, plan.scenario.seed), topology,
                             kind=TRIED_AGAIN)
        store.append("observations", among.observations, arm=arm.name, phase="among")
    looked = second_look.joined(seen, suspected, alone, among)
    store.append("observations", [one for one in looked.observations if one.flow in looked.strained], arm=arm.name,
                 phase="held")
    return looked, tuple(itertools.chain.from_iterable(part.truths for part in (*alone, *([among] if among else []))))


def _forged(arm: Arm, plan: Plan, testbed: Testbed, store: ResultStore) -> tuple[tuple[Forgery, bool], ...]:
    """Datagrams in another's name; none where the services are not real ones, which alone can tell."""
    if not plan.forgeries or not isinstance(testbed, ServedTestbed):
        return ()
    forged = tuple(zip(plan.forgeries, spoof.send(testbed, plan.forgeries), strict=True))
    store.append("forgeries", [{**asdict(one), "arrived": arrived} for one, arrived in forged], arm=arm.name)
    return forged


def sighted(arm: Arm, store: ResultStore) -> tuple[tuple[Sighting, ...], tuple[str, ...]]:
    """What the arm's telemetry says, in the one shape, and whatever it says of its own losses (header lines)."""
    collected = arm.enforcement.collect()
    sightings = tuple(itertools.chain.from_iterable(
        arm.enforcer.sightings(point, lines) for point, lines in collected.items()))
    store.append("sightings", sightings, arm=arm.name)
    notes = tuple(note for point, lines in collected.items() for note in _headers(point, lines))
    store.append("telemetry-notes", [{"note": note} for note in notes], arm=arm.name)
    return sightings, notes


def _headers(point: Point, lines: Sequence[bytes]) -> list[str]:
    return [f"{point.host}: {line.decode(errors='replace')}" for line in lines if b'"header"' in line[:40]]


def call_truths(events: Sequence[tuple[Actor, tuple[str, ...]]], scenario: Scenario) -> tuple[Truth, ...]:
    """The calls that services made of each other while serving (events `c`), as Truth."""
    topology = scenario.topology
    by_address = {(topology.tenant(host.name), host.address(family)): host.name
                  for host in topology.hosts.values() for family in (4, 6)}
    truths = []
    for actor, event in events:
        if event[0] != "c":
            continue
        _c, outcome, _errno, _family, laddr, sport, daddr, dport, start, _connect, end, size = event
        truths.append(Truth("call", actor.host, actor.process, topology.processes[actor.process].path, actor.user,
                            by_address.get((topology.tenant(actor.host), daddr), daddr), "tcp", laddr, int(sport),
                            daddr, int(dport), int(start) / 1e9, int(end) / 1e9, int(size), outcome, outcome == "OPEN"))
    return tuple(truths)
