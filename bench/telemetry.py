"""One `labctl telemetry`: a scenario's flows under one arm, every collector attached at once, and what each told."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench import dialects, honest, registry, testbeds
from bench.analysis.telemetry import KINDS, kind
from bench.arms import call_truths
from bench.contract import EnforcerError
from bench.dialects import Kept, World
from bench.instruments import onhost, telemetry
from bench.instruments import probe as prober
from bench.instruments.onhost import ProgramError
from bench.instruments.telemetry import exporters, port_tap, readings
from bench.instruments.telemetry.cloud import Clock
from bench.instruments.telemetry.exporters import Export
from bench.instruments.traffic import Traffic, TrafficError
from bench.report import telemetry as report
from bench.report.console import console
from bench.report.progress import Progress
from bench.report.telemetry import Dialect, Telemetry
from bench.selection import Selection, select
from bench.store import ResultStore
from lab.backends import mirror
from lab.backends.base import Enforcement, HostProcess
from lab.backends.mininet_lab import MininetTestbed
from lab.backends.served import LabDownError
from lab.deploy.enforcement import DeployError
from lab.hosts.build import BuildError, build
from lab.hosts.control import ServiceError
from lab.hosts.roles import actors
from lab.isolation import RUN_DIR, RunIdentity, finishing, heed_interrupt, run_isolated
from lab.model import Deployment, Enforcer, Flow, Point, Scenario, Sighting, Truth
from lab.policy_sets import Oracle
from lab.users import one_user

FLOWS = 4000  # that are probed at most; a sample of each class beyond
TRAFFIC_S = 4.0
LONG_FLOWS, LONG_S, LONG_EVERY_S, LONG_SIZE = 6, 5.0, 0.05, 200
_LONG = "/run/host/load/long_flow.py"
_GRACE_S = 4.0
_BROKEN = (LabDownError, DeployError, TrafficError, ServiceError, ProgramError, OSError)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do and to attach. `mirrored`: only these segments have a mirror port; None: all."""

    exports: tuple[Export, ...] = dialects.EXPORTS
    flows: int = FLOWS
    traffic_s: float = TRAFFIC_S
    long_s: float = LONG_S
    factor: float = dialects.FACTOR
    mirrored: tuple[str, ...] | None = None


def run(scenario: Scenario, arm: str, plan: Plan, results: Path, *, as_json: bool) -> int:
    """Run and print. Exit status: 0, 2 (the arm's code fails), 3 (machine), 130."""
    try:
        labhost = build()
    except BuildError as err:
        print(err, file=sys.stderr)
        return 3
    return run_isolated(lambda me: _inside(scenario, arm, plan, labhost, me, results, as_json=as_json), "run",
                        scenario.name)


def _inside(scenario: Scenario, arm: str, plan: Plan, labhost: Path, me: RunIdentity, results: Path, *,
            as_json: bool) -> int:
    try:
        with ResultStore.create(results / "telemetry", scenario.name) as store, Progress() as say:
            found = measure(scenario, registry.load(arm), plan, labhost, me, store, _heeding(say))
            store.document("telemetry.json", found.model_dump_json(indent=1) + "\n")
    except KeyboardInterrupt:
        return 130
    except EnforcerError as err:
        print(f"labctl: {err}", file=sys.stderr)
        return 2
    except _BROKEN as err:
        print(f"labctl: {err}", file=sys.stderr)
        return 3
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        report.show(found, console())
        print(f"\nsaved in {store.directory}")
    return 0


def _heeding(say: Say) -> Say:
    """`say`, which is called between steps, and so is where an interrupt that was swallowed is heeded."""
    def heeding(text: str) -> None:
        heed_interrupt()
        say(text)
    return heeding


def measure(scenario: Scenario, enforcer: Enforcer, plan: Plan, labhost: Path, me: RunIdentity, store: ResultStore,
            say: Say) -> Telemetry:
    """Stand the lab up under the arm, attach everything, make the flows, judge. Raises what a backend raises."""
    if any(scenario.topology.tenants):
        raise LabDownError(f"{scenario.name} has tenants, and exports tell of addresses alone; use another scenario")
    if reason := testbeds.missing(scenario.backend, enforcer.needs()):
        raise LabDownError(f"{enforcer.name} is unsupported here, because {reason}")
    if not me.several_users:
        scenario = replace(scenario, topology=one_user(scenario.topology))
    begun = time.monotonic()
    chosen = select(scenario, plan.flows)
    say(f"standing up {len(scenario.topology.hosts)} hosts")
    honest.share_packages()
    who = actors(scenario.topology, chosen.flows)
    with testbeds.up(scenario, [enforcer], labhost, me, who, None) as testbed:
        assert isinstance(testbed, MininetTestbed)
        with honest.clients(scenario, testbed) as traffic:
            kept, truths = _observed(_Lab(scenario, enforcer, testbed, traffic, plan, chosen), say)
        say("taking the lab down")
    with finishing():
        say("judging")
        found, rows = _judged(kept, World(scenario.topology, truths), enforcer, scenario, plan, store)
        _store(scenario, truths, kept, rows, store)
    counts = Counter(kind(t) for t in truths if t.sport or t.proto == "icmp")
    return Telemetry(scenario=scenario.name, arm=enforcer.name, seed=scenario.seed, seconds=time.monotonic() - begun,
                     flows={name: counts[name] for name in KINDS}, sampled_from=chosen.total, dialects=found,
                     notes=tuple(_notes(chosen, counts)))


@dataclass(frozen=True, slots=True)
class _Lab:
    scenario: Scenario
    enforcer: Enforcer
    testbed: MininetTestbed
    traffic: Traffic | None
    plan: Plan
    chosen: Selection


# --- collectors attached, flows made --------------------------------------------------------------


def _observed(lab: _Lab, say: Say) -> tuple[Kept, tuple[Truth, ...]]:
    """Deploy, attach, make the flows, let everything be told, take it all away."""
    topology, enforcer = lab.scenario.topology, lab.enforcer
    native = enforcer.compile(lab.scenario.policy, topology)
    deployment = enforcer.render(native, topology)
    place = lab.testbed.enforcement(enforcer.name, lambda flow: enforcer.covers(flow, topology))
    say(f"{enforcer.name}: deploying")
    place.install(native, deployment)
    try:
        with _attached(lab, place, deployment, say) as (kept, running):
            truths = _flows(lab, say)
            if running is not None:
                say("what is open is told")
                running.settle(max((export.idle_s for export in lab.plan.exports), default=0) + _GRACE_S)
    finally:
        place.down()
    return kept, truths


@contextlib.contextmanager
def _attached(lab: _Lab, place: Enforcement, deployment: Deployment,
              say: Say) -> Iterator[tuple[Kept, exporters.Exporters | None]]:
    topology, plan = lab.scenario.topology, lab.plan
    offset = time.time() - time.monotonic()
    kept = Kept(Clock(time.monotonic(), offset, plan.factor))
    kept.records_lack = None if any(one.collect for one in deployment.values()) else "this arm keeps none"
    kept.exports_lack = exporters.lacks() if plan.exports else None
    at_ports = [one for point, one in deployment.items() if point.kind == "port"]
    kept.ports_judge = bool(at_ports)
    if not all(one.collect for one in at_ports):
        kept.ports_lack = "its switch ports keep no records of what they refuse"
    running = None
    with contextlib.ExitStack() as stack:
        if kept.exports_lack is None and plan.exports:
            say("attaching exporters")
            spans = stack.enter_context(mirror.mirrored(topology, plan.mirrored))
            running = stack.enter_context(exporters.exporting(plan.exports, spans, RUN_DIR / "telemetry"))
            kept.streams = running.streams
        if kept.ports_lack is None:
            ports = {lab.testbed.port_of(Point("port", host.name)): host.name for host in topology.hosts.values()
                     if not host.external}
            room = port_tap.ring_frames(len(lab.chosen.flows))
            kept.heard = stack.enter_context(port_tap.tapped(ports, offset, room))
        if kept.records_lack is None:
            kept.readings = stack.enter_context(readings.reading(_reader(lab.enforcer, place, kept), dialects.EVERY_S))
        yield kept, running


def _reader(enforcer: Enforcer, place: Enforcement, kept: Kept) -> readings.Read:
    def read() -> tuple[Sequence[Sighting], int]:
        found: list[Sighting] = []
        lost = 0
        for point, lines in place.collect().items():
            told = list(enforcer.sightings(point, lines))
            found += told
            if point.kind == "port":  # what goes on is told at every reading, with more each time
                kept.decided |= {dialects.same(one): one for one in told}
            lost += sum(_lost(line) for line in lines if b'"header"' in line[:40])
        return found, lost
    return read


def _lost(line: bytes) -> int:
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        return int(json.loads(line).get("lost") or 0)
    return 0


def _flows(lab: _Lab, say: Say) -> tuple[Truth, ...]:
    """Everything that is done while the collectors listen, as it was really done."""
    scenario, testbed = lab.scenario, lab.testbed
    testbed.services.drain_events()
    with _long_flows(lab) as long:
        say(f"{len(lab.chosen.flows):,} flows")
        probed = prober.probe(testbed.services, prober.shuffled(lab.chosen.flows, scenario.seed), scenario.topology)
        window = None
        if lab.traffic and scenario.traffic:
            say("traffic")
            window = lab.traffic.run(scenario.traffic.rate, lab.plan.traffic_s)
        lasting = [_long_truth(flow, onhost.said(process, flow.source, "a long flow"), scenario)
                   for flow, process in long]
    calls = call_truths(testbed.services.drain_events(), scenario)
    return (*probed.truths, *(window.truths if window else ()), *lasting, *calls)


@contextlib.contextmanager
def _long_flows(lab: _Lab) -> Iterator[list[tuple[Flow, HostProcess]]]:
    """Connections that last, of allowed flows between hosts, from a process of the flow's own user."""
    topology, testbed = lab.scenario.topology, lab.testbed
    chosen = lasting(lab.scenario, lab.chosen.flows)
    onhost.place(testbed, [flow.source for flow in chosen])
    source = Path(telemetry.__file__).with_name("long_flow.py").read_bytes()
    started: list[tuple[Flow, HostProcess]] = []
    try:
        for flow in chosen:
            testbed.put(flow.source, {_LONG: source})
            address = topology.hosts[flow.target].address(flow.family)
            words = (address, str(flow.port), str(lab.plan.long_s), str(LONG_EVERY_S), str(LONG_SIZE))
            started.append((flow, onhost.start(testbed, flow.source, _LONG, *words, process=flow.process)))
        yield started
    finally:
        for _flow, process in started:
            process.kill()


def lasting(scenario: Scenario, flows: Sequence[Flow]) -> list[Flow]:
    """Which flows are made long ones: allowed, TCP, between hosts, one of each pair, no more than LONG_FLOWS."""
    topology = scenario.topology
    traffic = scenario.traffic
    fit = [f for f in flows if f.proto == "tcp" and f.source != f.target and f.process in topology.processes
           and f.target_process in topology.processes and not topology.processes[f.target_process].real
           and f.user == topology.processes[f.process].user and not (traffic and f.process == traffic.process)]
    verdicts = Oracle(scenario.policy, topology).verdicts(fit)
    allowed = sorted((flow for flow, verdict in zip(fit, verdicts, strict=True) if verdict.allow), reverse=True)
    one_each = {(flow.source, flow.target): flow for flow in allowed}
    return sorted(one_each.values())[:LONG_FLOWS]


def _long_truth(flow: Flow, said: dict[str, object], scenario: Scenario) -> Truth:
    topology = scenario.topology
    source, target = topology.hosts[flow.source], topology.hosts[flow.target]
    outcome = str(said["outcome"])
    return Truth("long", flow.source, flow.process, topology.processes[flow.process].path, flow.user, flow.target,
                 flow.proto, source.address(flow.family), int(str(said["sport"])), target.address(flow.family),
                 flow.port, float(str(said["start"])), float(str(said["end"])), int(str(said["bytes"])), outcome,
                 outcome == "OPEN")


# --- judged and kept ------------------------------------------------------------------------------


def _judged(kept: Kept, world: World, enforcer: Enforcer, scenario: Scenario, plan: Plan,
            store: ResultStore) -> tuple[tuple[Dialect, ...], list[dialects.Row]]:
    deployment = enforcer.render(enforcer.compile(scenario.policy, world.topology), world.topology)
    kinds = " and ".join(sorted({f"{point.kind}s" for point in deployment}))
    own, rows = dialects.own(kept, world, enforcer.name, f"the arm's own, at {kinds or 'no point'}")
    exported, more = dialects.exported(kept, world, plan.exports)
    logged, logs, lines = dialects.logged(kept, world)
    store.append("log-lines", [{"dialect": d, "setting": s, "at": at, "line": line} for d, s, at, line in lines])
    return (own, *exported, *logged), [*rows, *more, *logs]


def _store(scenario: Scenario, truths: Sequence[Truth], kept: Kept, rows: Sequence[dialects.Row],
           store: ResultStore) -> None:
    store.document("scenario.yaml", Path(scenario.path).read_text())
    store.append("truth", truths)
    for stream in kept.streams:
        store.append("datagrams", [{"at": at, "hex": data.hex()} for at, data in stream.datagrams],
                     export=asdict(stream.export), segment=stream.segment)
    for row in rows:
        store.append("told", [{"at": one.at, "until": one.until, **asdict(one.sighting)} for one in row.told],
                     dialect=row.dialect, setting=row.setting.setting)


def _notes(chosen: Selection, counts: Counter[str]) -> Iterator[str]:
    if chosen.sampled:
        yield f"{len(chosen.flows):,} of {chosen.total:,} flows were probed, a sample of every class"
    if not counts["long"]:
        yield "no long flow was made: no TCP flow between two declared processes of different hosts is allowed"
    if not counts["denied"]:
        yield "nothing was denied: this arm lets everything through"
