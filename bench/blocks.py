"""Cost: blocks over the standing topology, every arm once a block in a shuffled order, `none` twice."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from statistics import median

from numpy.typing import ArrayLike

from bench.analysis.stats import percentile
from bench.arms import Arm
from bench.instruments import datapath, probe
from bench.instruments.datapath import Design, Series
from bench.instruments.traffic import Traffic, TrafficWindow
from bench.instruments.yardstick import Yardstick
from bench.store import ResultStore
from lab.backends.base import Testbed
from lab.model import Flow, Outcome, Topology

AA = "none (again)"
ANSWER_TIMEOUT_S, SILENCE_S = 1.5, 0.15
APP_WINDOW_S, APP_RAMP_S = 0.75, 0.25
MOST_FAILED = 0.25  # share of the windows of a visit that counts


@dataclass(frozen=True, slots=True)
class Check:
    """Flows whose verdict under each arm is known from its matrix: the policy is verified while the cost is taken."""

    allowed: tuple[Flow, ...]
    denied: tuple[Flow, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm in one block: as measured, nothing adjusted. `invalid`: why none of it counts, if so.

    `series` are the loops' windows, by name; `figures` what was measured once in the visit (bulk and application; None
    where it could not be, absent where this block does not take it).
    """

    block: int
    arm: str
    order: int
    series: Mapping[str, Series]
    figures: Mapping[str, float | None]
    invalid: tuple[str, ...]
    spoilt: tuple[str, ...]  # why the application's figures alone do not count
    seconds: float
    up_s: float
    down_s: float
    verified: int  # probes of the policy before, during (beside the application's window) and after
    contradicted: int  # of these, not as in the arm's own matrix


@dataclass(frozen=True, slots=True)
class CostPlan:
    """`extras_every`: bulk and application windows are taken in every so manieth block; 0: in none. `paced`: `Pace`."""

    flow: Flow
    design: Design
    extras_every: int
    rate: float
    blocks: int
    seed: int
    shuffled: bool = True  # only the self-test has the arms in one order, to show what that does
    paced: bool = True


@dataclass(slots=True)
class Pace:
    """What putting an arm in place and taking it away takes.

    A visit of the baseline, which places nothing, waits as long. Otherwise its two visits would lie closer together
    than those of the arms, and the machine, which changes within seconds, would make A/A look steadier than the rest.
    """

    waits: bool = True
    up: list[float] = field(default_factory=list)
    down: list[float] = field(default_factory=list)

    def keep(self, baseline: bool, taken: list[float], act: Callable[[], object]) -> float:
        """Do it; returns the seconds it took without any wait. `taken` is `up` or `down`."""
        begin = time.monotonic()
        act()
        spent = time.monotonic() - begin
        if not baseline:
            taken.append(spent)
        elif taken and self.waits:
            time.sleep(max(0.0, median(taken) - spent))
        return spent


def run_blocks(plan: CostPlan, arms: Sequence[Arm], checks: dict[str, Check], testbed: Testbed, traffic: Traffic | None,
               store: ResultStore, say: Callable[[str], None], cells: list[Cell],
               enough: Callable[[int], bool] = lambda _blocks: False) -> None:
    """Append every cell to `cells`, stored as it comes. The baseline stands twice in a block: as itself, and as AA.

    After each block `enough` is asked, with the blocks so far, whether to stop before `plan.blocks`.
    """
    rng, pace = random.Random(plan.seed), Pace(plan.paced)
    baseline = next(arm for arm in arms if arm.name == "none")
    with closing(Yardstick(datapath.last_cpu())) as yardstick:
        for block in range(plan.blocks):
            entries = [(arm.name, arm) for arm in arms] + [(AA, baseline)]
            if plan.shuffled:
                rng.shuffle(entries)
            for order, (name, arm) in enumerate(entries):
                say(f"block {block + 1} of {plan.blocks}: {name}")
                visit = Visit(plan, block, order, name, arm, checks[arm.name], testbed, traffic)
                cell = visit.measure(pace, yardstick)
                store.append("cells", [cell])
                cells.append(cell)
            if enough(block + 1):
                break


@dataclass(frozen=True, slots=True)
class Visit:
    """One arm's turn in one block."""

    plan: CostPlan
    block: int
    order: int
    name: str
    arm: Arm
    check: Check
    testbed: Testbed
    traffic: Traffic | None

    @property
    def extras(self) -> bool:
        return bool(self.plan.extras_every) and self.block % self.plan.extras_every == 0

    def measure(self, pace: Pace, yardstick: Yardstick) -> Cell:
        begin = time.monotonic()
        place, baseline = self.arm.enforcement, self.arm.name == "none"
        up_s = pace.keep(baseline, pace.up, place.up)
        try:
            wrong = [f"before: {problem}" for problem in verify(self.check, self.testbed)]
            loops = datapath.measure(self.testbed, self.plan.flow, replace(self.plan.design, bulk=self.extras),
                                     yardstick.read)
            figures: dict[str, float | None] = {"bulk_bps": loops.bulk_bps} if self.extras else {}
            spoilt: tuple[str, ...] = ()
            times = 2
            if self.extras and self.traffic and self.plan.rate:
                app, during = self._application(self.traffic)
                times, spoilt = 3, app.invalid
                wrong += [f"during: {problem}" for problem in during]
                # A generator past its knee spoils the application's figures, not those of the lighter client.
                figures |= {"app_p50_us": None, "app_p99_us": None} if spoilt else _app(app.from_intended_us)
            wrong += [f"after: {problem}" for problem in verify(self.check, self.testbed)]
        finally:
            down_s = pace.keep(baseline, pace.down, place.down)
        self.testbed.services.drain_events()
        failed = [f"exchanges failed in {loops.failed:.0%} of the windows along {self.plan.flow}"] if (
            loops.failed > MOST_FAILED) else []
        return Cell(self.block, self.name, self.order, loops.series, figures, (*wrong, *failed), spoilt,
                    time.monotonic() - begin, up_s, down_s,
                    times * (len(self.check.allowed) + len(self.check.denied)), len(wrong))

    def _application(self, traffic: Traffic) -> tuple[TrafficWindow, list[str]]:
        """A window of the application's traffic, and what of the policy was not in force beside it."""
        with ThreadPoolExecutor(1) as beside:
            during = beside.submit(verify, self.check, self.testbed)
            return traffic.run(self.plan.rate, APP_WINDOW_S, APP_RAMP_S), during.result()


def _app(latencies: ArrayLike) -> dict[str, float | None]:
    return {"app_p50_us": percentile(latencies, 50), "app_p99_us": percentile(latencies, 99)}


def verify(check: Check, testbed: Testbed) -> list[str]:
    """What is not as the arm's own matrix had it: a cost without the policy in force does not count."""
    # What is allowed answers at once, so a long timeout costs nothing; what is denied in silence takes all of its.
    allowed = probe.probe(testbed.services, check.allowed, testbed.topology, timeout_s=ANSWER_TIMEOUT_S).observations
    denied = probe.probe(testbed.services, check.denied, testbed.topology, timeout_s=SILENCE_S).observations
    return [*(f"{seen.flow} was {seen.outcome}, allowed in the matrix" for seen in allowed
              if seen.outcome != Outcome.OPEN),
            *(f"{seen.flow} was {seen.outcome}, denied in the matrix" for seen in denied
              if seen.outcome == Outcome.OPEN or seen.arrived)]


def pick_flow(flows: Sequence[Flow], allowed: Callable[[Flow], bool], topology: Topology) -> Flow | None:
    """The flow that costs are taken along: declared processes, TCP, IPv4, allowed, and across segments if any is."""
    fit = [f for f in flows
           if f.proto == "tcp" and f.family == 4 and f.source != f.target and f.process in topology.processes
           and f.user == topology.processes[f.process].user and f.target_process in topology.processes
           and _listens(f, topology) and allowed(f)]
    # What measures bulk takes the place of both ends' executables: not of one that is known by its content.
    fit = [f for f in fit if not any(topology.processes[name].sha256 for name in (f.process, f.target_process))] or fit
    across = [f for f in fit if topology.hosts[f.source].segment != topology.hosts[f.target].segment]
    return min(across or fit, default=None)


def _listens(flow: Flow, topology: Topology) -> bool:
    return any(s.proto == "tcp" and s.low <= flow.port <= s.high
               for s in topology.processes[flow.target_process].listens)


def make_check(flows: Sequence[Flow], is_open: Callable[[Flow], bool], is_shut: Callable[[Flow], bool],
               seed: int, most: int = 12) -> Check:
    rng = random.Random(seed)
    opened, shut = [f for f in flows if is_open(f)], [f for f in flows if is_shut(f)]
    return Check(tuple(rng.sample(opened, min(most, len(opened)))), tuple(rng.sample(shut, min(most, len(shut)))))
