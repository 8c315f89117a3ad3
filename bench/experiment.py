"""The experiment: control first, every arm examined once, then cost blocks. Collects raw data; judges nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import arms, blocks, costs, loading, testbeds
from bench.analysis import sequential
from bench.analysis.sequential import Look
from bench.arms import Arm, ArmRecord
from bench.blocks import Cell
from bench.instruments.datapath import Design
from bench.instruments.spoof import Forgery, forgeries
from bench.instruments.traffic import Traffic
from bench.loading import LoadPlan, LoadRecord
from bench.selection import Selection
from bench.store import ResultStore
from lab.backends.base import Testbed
from lab.model import Enforcer, Flow, Outcome, Scenario
from lab.policy_sets import Oracle

BASELINE = "none"
DEFAULT_BLOCKS, QUICK_BLOCKS = 28, 3
LOAD_BLOCKS, QUICK_LOAD_BLOCKS = 6, 3
MOST_BLOCKS = 1000  # of a run that goes on until its intervals are narrow
EXTRAS_EVERY = 3  # bulk and application windows: in every so manieth block
LEAST_BLOCKS, RUN_S = 16, 540.0  # with many arms a run has fewer blocks, so that it ends within ten minutes
QUICK_DESIGN = Design(crr=8, rr=8)
UNTIL_BUDGET_S = 900.0
TRAFFIC_S, QUICK_TRAFFIC_S = 4.0, 2.0
REPLAY_LIMIT = 20_000
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How a run was asked for. `blocks` None means the default.

    `until`: half-width of the intervals (0.02 is 2 %) at which to stop; no block begins after `budget_s` seconds.
    `extras_every`: bulk and application windows are taken in every so manieth block, 0: never. `paced`: whether visits
    of the baseline take as long as others. `load`: find the knee, and measure at shares of it, in blocks of their own.
    `spoofing`: datagrams in another's name are tried; not where the self-test counts what a plant dropped.
    """

    arms: tuple[str, ...] | None = None
    quick: bool = False
    as_json: bool = False
    results: Path = Path("results")
    blocks: int | None = None
    seed: int | None = None
    shuffled: bool = True  # only the self-test has the arms in one order, to show what that does
    until: float | None = None
    budget_s: float = UNTIL_BUDGET_S
    extras_every: int = EXTRAS_EVERY
    paced: bool = True
    load: bool = False
    spoofing: bool = True
    design: Design = field(default_factory=Design)

    @property
    def block_count(self) -> int:
        """The blocks of the run; with `until` the most there can be."""
        if self.blocks is not None:
            return self.blocks
        return MOST_BLOCKS if self.until else QUICK_BLOCKS if self.quick else DEFAULT_BLOCKS

    @property
    def load_blocks(self) -> int:
        """The blocks of the measurement under load; 0: there is none."""
        return (QUICK_LOAD_BLOCKS if self.quick else LOAD_BLOCKS) if self.load else 0

    @property
    def fits(self) -> bool:
        """Whether the number of blocks was left to us, so that the run may end before them all."""
        return self.blocks is None and self.until is None and not self.quick


def quickly(options: Options) -> Options:
    """The same run within a minute or so: marked, and too short for much."""
    return replace(options, quick=True, design=QUICK_DESIGN, extras_every=QUICK_BLOCKS, paced=False)


@dataclass(slots=True)
class Collected:
    """All that a run learnt so far; whole or not, it can be summed up."""

    scenario: Scenario
    options: Options
    selection: Selection
    enforcers: Mapping[str, Enforcer]
    unsupported: dict[str, str] = field(default_factory=dict)
    arms: dict[str, Arm] = field(default_factory=dict)
    records: dict[str, ArmRecord] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    environment: dict[str, object] = field(default_factory=dict)
    measured: Flow | None = None
    load: LoadRecord = field(default_factory=LoadRecord)
    look: Look | None = None  # the last one, of a run with `until`
    invalid: list[str] = field(default_factory=list)
    interrupted: bool = False
    begun: float = field(default_factory=time.monotonic)


def execute(collected: Collected, testbed: Testbed, traffic: Traffic | None, store: ResultStore, say: Say) -> None:
    """Fill `collected`. An interrupt keeps what was measured and is marked; whatever else goes wrong is raised."""
    options = collected.options
    try:
        _prepare(collected, testbed)
        _examine_all(collected, testbed, traffic, store, say)
        _take_costs(collected, testbed, traffic, store, say)
        if options.load_blocks:
            _take_load(collected, testbed, traffic, store, say)
    except KeyboardInterrupt:
        collected.interrupted = True


def _prepare(collected: Collected, testbed: Testbed) -> None:
    """Compile every arm that this machine supports."""
    topology = collected.scenario.topology
    for name, enforcer in collected.enforcers.items():
        reason = testbeds.unsupported(collected.scenario, enforcer)
        if reason:
            collected.unsupported[name] = reason
            continue
        native = enforcer.compile(collected.scenario.policy, topology)
        place = testbed.enforcement(name, lambda flow, e=enforcer: e.covers(flow, topology))  # type: ignore[misc]
        collected.arms[name] = Arm(name, enforcer, native, place)


def _examine_all(collected: Collected, testbed: Testbed, traffic: Traffic | None, store: ResultStore,
                 say: Say) -> None:
    scenario = collected.scenario
    replay = tuple(r.flow for r in scenario.replay)[:REPLAY_LIMIT]
    plan = arms.Plan(scenario, collected.selection.flows, replay,
                     QUICK_TRAFFIC_S if collected.options.quick else TRAFFIC_S, _forgeries(collected))
    for name, arm in collected.arms.items():  # the baseline is first: it is the positive control of all others
        collected.records[name] = arms.examine(arm, plan, testbed, traffic, store, lambda s, n=name: say(f"{n}: {s}"))  # type: ignore[misc]


def _forgeries(collected: Collected) -> tuple[Forgery, ...]:
    """What can be sent in another's name; containers are given no raw sockets, so there nothing can."""
    scenario, flows = collected.scenario, collected.selection.flows
    if scenario.backend != "mininet" or not collected.options.spoofing:
        return ()
    verdicts = Oracle(scenario.policy, scenario.topology).verdicts(flows)
    allowed = [flow for flow, verdict in zip(flows, verdicts, strict=True) if verdict.allow]
    return forgeries(allowed, scenario.topology, scenario.seed)


def _take_costs(collected: Collected, testbed: Testbed, traffic: Traffic | None, store: ResultStore,
                say: Say) -> None:
    scenario, options = collected.scenario, collected.options
    intended = dict(zip(collected.selection.flows, Oracle(scenario.policy, scenario.topology).verdicts(
        collected.selection.flows), strict=True))
    everywhere = _open_everywhere(collected)
    collected.measured = blocks.pick_flow(
        collected.selection.flows, lambda f: intended[f].allow and f in everywhere and not _foreign(f, scenario),
        scenario.topology)
    if collected.measured is None or options.block_count == 0:
        if collected.measured is None and options.block_count:
            collected.invalid.append("no costs: no declared TCP flow between two hosts is open under every arm")
        return
    plan = blocks.CostPlan(collected.measured, options.design, options.extras_every,
                           scenario.traffic.rate if scenario.traffic else 0.0, options.block_count, scenario.seed,
                           options.shuffled, options.paced)
    checks = {name: _check(record, scenario.seed) for name, record in collected.records.items()}
    blocks.run_blocks(plan, list(collected.arms.values()), checks, testbed, traffic, store, say, collected.cells,
                      lambda count: _enough(collected, count))


def _take_load(collected: Collected, testbed: Testbed, traffic: Traffic | None, store: ResultStore, say: Say) -> None:
    if collected.measured is None:
        collected.invalid.append("no load: no declared TCP flow between two hosts is open under every arm")
        return
    scenario, everywhere = collected.scenario, _open_everywhere(collected)
    datagrams = min((f for f in everywhere if f.proto == "udp" and f.family == 4 and f.source != f.target
                     and {f.process, f.target_process} <= scenario.topology.processes.keys()), default=None)
    plan = LoadPlan(collected.measured, datagrams, collected.options.load_blocks, scenario.seed)
    checks = {name: _check(record, scenario.seed) for name, record in collected.records.items()}
    loading.run(plan, list(collected.arms.values()), checks, testbed, traffic, store, say, collected.load)


def _foreign(flow: Flow, scenario: Scenario) -> bool:
    """Whether a real program answers, which echoes nothing: costs are taken between built-in services."""
    target = scenario.topology.processes.get(flow.target_process)
    return target is not None and target.real


def _enough(collected: Collected, count: int) -> bool:
    """Whether the run stops after `count` blocks: by its time, or with `until` by a look, the last of which is kept."""
    options, elapsed = collected.options, time.monotonic() - collected.begun
    if options.fits:
        return count >= LEAST_BLOCKS and elapsed >= RUN_S
    names = tuple(name for name in collected.arms if name != BASELINE)
    if options.until is None or not names:
        return False
    spent = elapsed >= options.budget_s or count == options.block_count
    if spent or sequential.due(count):
        collected.look = sequential.look(costs.look_columns(collected.cells, tuple(collected.arms)), options.until)
    return spent or (collected.look is not None and collected.look.enough)


def _open_everywhere(collected: Collected) -> set[Flow]:
    opened = [{o.flow for o in record.matrix.observations if o.outcome is Outcome.OPEN}
              for record in collected.records.values()]
    return set.intersection(*opened) if opened else set()


def _check(record: ArmRecord, seed: int) -> blocks.Check:
    seen = {o.flow: o for o in record.matrix.observations}
    return blocks.make_check(
        sorted(seen), lambda f: seen[f].outcome is Outcome.OPEN,
        lambda f: seen[f].outcome is not Outcome.OPEN and not seen[f].arrived, seed)
