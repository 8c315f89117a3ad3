"""Cost: blocks over the standing topology, every arm once a block in a shuffled order, `none` twice."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from numpy.typing import ArrayLike

from bench.analysis.stats import percentile
from bench.arms import Arm
from bench.instruments import datapath, probe
from bench.instruments.traffic import Traffic
from bench.store import ResultStore
from lab.backends.base import Testbed
from lab.model import Flow, Outcome, Topology

AA = "none (again)"
ANSWER_TIMEOUT_S, SILENCE_S = 1.5, 0.15
APP_WINDOW_S, APP_RAMP_S = 0.75, 0.25


@dataclass(frozen=True, slots=True)
class Check:
    """Flows whose verdict under each arm is known from its matrix: the policy is verified while the cost is taken."""

    allowed: tuple[Flow, ...]
    denied: tuple[Flow, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm in one block: its figures (None where they could not be taken) and why they do not count, if so."""

    block: int
    arm: str
    order: int
    figures: dict[str, float | None]
    invalid: tuple[str, ...]
    spoilt: tuple[str, ...]  # why the application's figures alone do not count
    seconds: float
    verified: int  # probes of the policy before, during (beside the application's window) and after
    contradicted: int  # of these, not as in the arm's own matrix


@dataclass(frozen=True, slots=True)
class CostPlan:
    flow: Flow
    seconds: float  # of each figure
    rate: float
    blocks: int
    seed: int
    shuffled: bool = True  # only the self-test has the arms in one order, to show what that does


def run_blocks(plan: CostPlan, arms: Sequence[Arm], checks: dict[str, Check], testbed: Testbed,
               traffic: Traffic | None, store: ResultStore, say: Callable[[str], None], cells: list[Cell]) -> None:
    """Append every cell to `cells`, stored as it comes. The baseline stands twice in a block: as itself, and as AA."""
    rng = random.Random(plan.seed)
    baseline = next(arm for arm in arms if arm.name == "none")
    for block in range(plan.blocks):
        entries = [(arm.name, arm) for arm in arms] + [(AA, baseline)]
        if plan.shuffled:
            rng.shuffle(entries)
        for order, (name, arm) in enumerate(entries):
            say(f"block {block + 1} of {plan.blocks}: {name}")
            cell = _cell(plan, block, order, name, arm, checks[arm.name], testbed, traffic)
            store.append("cells", [cell])
            cells.append(cell)


def _cell(plan: CostPlan, block: int, order: int, name: str, arm: Arm, check: Check, testbed: Testbed,
          traffic: Traffic | None) -> Cell:
    begin = time.monotonic()
    times = 3 if traffic and plan.rate else 2
    arm.enforcement.up()
    try:
        wrong = [f"before: {problem}" for problem in verify(check, testbed)]
        window = datapath.measure(testbed, plan.flow, plan.seconds)
        figures: dict[str, float | None] = {"app_p50_us": None, "app_p99_us": None, **window.figures}
        spoilt: tuple[str, ...] = ()
        failed = []
        if window.errors:
            failed.append(f"{window.errors} exchanges failed along {plan.flow}")
        if traffic and plan.rate:
            with ThreadPoolExecutor(1) as beside:
                during = beside.submit(verify, check, testbed)
                app = traffic.run(plan.rate, APP_WINDOW_S, APP_RAMP_S)
                wrong += [f"during: {problem}" for problem in during.result()]
            # A generator past its knee spoils the application's figures, not those of the lighter client.
            figures.update({} if app.invalid else _app(app.from_intended_us))
            spoilt = app.invalid
        wrong += [f"after: {problem}" for problem in verify(check, testbed)]
    finally:
        arm.enforcement.down()
    testbed.services.drain_events()
    return Cell(block, name, order, figures, (*wrong, *failed), spoilt, time.monotonic() - begin,
                times * (len(check.allowed) + len(check.denied)), len(wrong))


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
           and f.target_process in topology.processes and _listens(f, topology) and allowed(f)]
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
