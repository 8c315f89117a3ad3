"""Load under measure: the knee with nothing enforced, then every arm at shares of it, in blocks as the costs are.

A visit of an arm is: its `up`; the policy verified; three windows of the application's traffic, at 25, 50 and 75 % of
the knee, the policy verified beside each; the figures that have no rate (loops, TLS, held connections, datagrams,
bulk); the policy verified again; `down`. Everything raw goes to the store as it comes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from bench.analysis.knee import Knee
from bench.analysis.stats import percentile
from bench.arms import Arm
from bench.blocks import AA, Check, Pace, verify
from bench.instruments import cpu, datapath, held, knee, load, onhost, tls, udp, web
from bench.instruments.histogram import encoded
from bench.instruments.load import LoadWindow
from bench.instruments.phases import Phases
from bench.instruments.traffic import Traffic
from bench.store import ResultStore
from lab.backends.base import Testbed
from lab.hosts.attempts import Actor, LoopResult
from lab.model import Flow

PHASES = Phases(init_s=0.1, ramp_s=0.4, sustain_s=1.5, down_s=0.1)
LOOP_S, TLS_S, UDP_S, HTTP_S = 0.5, 0.5, 0.5, 0.3
LOOP_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}
Figures = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Point:
    """One window of the application's traffic at `share` of the knee. `invalid`: why its figures are all None."""

    share: float
    rate: float
    figures: Mapping[str, float | None]
    invalid: tuple[str, ...]
    own_us: float | None


@dataclass(frozen=True, slots=True)
class LoadCell:
    """One arm in one block. `beside`: figures without a rate. `missing`: by figure, why it could not be taken.

    `wrong`: where the policy was not in force; none of the visit counts then.
    """

    block: int
    arm: str
    points: tuple[Point, ...]
    beside: Mapping[str, float | None]
    missing: Mapping[str, str]
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """`flow` (TCP) and `datagrams` (UDP, if the policy allows one) are open under every arm."""

    flow: Flow
    datagrams: Flow | None
    blocks: int
    seed: int
    phases: Phases = PHASES


@dataclass(slots=True)
class LoadRecord:
    """All that was measured under load so far. `counters`: which counter each source of CPU was read from."""

    knee: Knee | None = None
    cells: list[LoadCell] = field(default_factory=list)
    counters: dict[str, str] = field(default_factory=dict)


def run(plan: LoadPlan, arms: Sequence[Arm], checks: Mapping[str, Check], testbed: Testbed, traffic: Traffic | None,
        store: ResultStore, say: Callable[[str], None], record: LoadRecord) -> None:
    """Fill `record`. Without traffic there is no knee, and only what has no rate is measured.

    Raises TrafficError, WireError, ProgramError, InstrumentError.
    """
    onhost.place(testbed, [*(traffic.per_client if traffic else ()), *_ends(plan)])
    baseline = next(arm for arm in arms if arm.name == "none")
    if traffic:
        baseline.enforcement.up()
        try:
            record.knee = knee.find(traffic, say=say)
        finally:
            baseline.enforcement.down()
        store.append("knee", record.knee.steps)
    rng, pace = random.Random(plan.seed), Pace(waits=False)
    for block in range(plan.blocks):
        entries = [*((arm.name, arm) for arm in arms), (AA, baseline)]
        rng.shuffle(entries)
        for name, arm in entries:
            say(f"load {block + 1} of {plan.blocks}: {name}")
            visit = Visit(plan, block, name, arm, checks[arm.name], testbed, traffic, store, record)
            cell = visit.measure(pace)
            store.append("load", [cell])
            record.cells.append(cell)


def _ends(plan: LoadPlan) -> tuple[str, ...]:
    flows = (plan.flow, plan.datagrams) if plan.datagrams else (plan.flow,)
    return tuple(host for flow in flows for host in (flow.source, flow.target))


@dataclass(frozen=True, slots=True)
class Visit:
    """One arm's turn in one block."""

    plan: LoadPlan
    block: int
    name: str
    arm: Arm
    check: Check
    testbed: Testbed
    traffic: Traffic | None
    store: ResultStore
    record: LoadRecord

    def measure(self, pace: Pace) -> LoadCell:
        place, baseline = self.arm.enforcement, self.arm.name == "none"
        points: list[Point] = []
        pace.keep(baseline, pace.up, place.up)
        try:
            wrong = [f"before: {problem}" for problem in verify(self.check, self.testbed)]
            for share, rate in (self.record.knee.points() if self.record.knee else {}).items():
                point, during = self._point(share, rate)
                points.append(point)
                wrong += [f"at {share:.0%} of the knee: {problem}" for problem in during]
            beside, missing = self._beside()
            wrong += [f"after: {problem}" for problem in verify(self.check, self.testbed)]
        finally:
            pace.keep(baseline, pace.down, place.down)
        self.testbed.services.drain_events()
        return LoadCell(self.block, self.name, tuple(points), beside, missing, tuple(wrong))

    def _point(self, share: float, rate: float) -> tuple[Point, list[str]]:
        assert self.traffic is not None
        with ThreadPoolExecutor(1) as checking:
            during = checking.submit(verify, self.check, self.testbed)
            got = load.measure(self.testbed, self.traffic, rate, self.plan.phases)
            problems = during.result()
        self.store.append("load-windows", [raw(got)], arm=self.name, block=self.block, share=share)
        return Point(share, rate, got.figures, got.window.invalid, got.own_us), problems

    def _beside(self) -> tuple[Figures, dict[str, str]]:
        """The figures that have no rate, and why those are missing that could not be taken."""
        figures: Figures = {}
        missing: dict[str, str] = {}
        for names, take in ((("crr", "rr"), self._loops), (("tls",), self._tls), (("held",), self._held),
                            (("udp",), self._udp), (("bulk",), self._bulk)):
            try:
                figures |= take()
            except (onhost.ProgramError, datapath.InstrumentError, FileNotFoundError, TimeoutError) as err:
                missing |= dict.fromkeys(names, str(err))
        return figures, missing

    def _loops(self) -> Figures:
        flow, services = self.plan.flow, self.testbed.services
        client = Actor(flow.source, flow.process, flow.user)
        address = self.testbed.topology.hosts[flow.target].address(flow.family)
        found: Figures = {}
        with datapath.held_on_one(self.testbed, flow):
            before = cpu.read(self.testbed)
            crr = services.crr(client, flow.family, address, flow.port, LOOP_S)
            spent = cpu.between(before, cpu.read(self.testbed))
            rr = services.rr(client, flow.family, address, flow.port, LOOP_S)
            http = web.requests(services, client, flow.family, address, flow.port, HTTP_S)
        self.record.counters |= spent.counter
        self.store.append("load-loops", [
            {"loop": kind, "n": got.n, "errors": got.errors, "elapsed_s": got.elapsed_s,
             "hdr": encoded(got.latencies_us)} for kind, got in (("crr", crr), ("rr", rr), ("http", http))],
            arm=self.name, block=self.block)
        for kind, got in (("crr", crr), ("rr", rr)):
            found |= {f"{kind}_{name}_us": percentile(got.latencies_us, q)
                      for name, q in LOOP_PERCENTILES.items()}
        found |= {f"cpu_{source}_per_conn_us": value for source, value in spent.per_connection_us(crr.n).items()}
        return found | {"http_per_s": _rate(http)}

    def _tls(self) -> Figures:
        return {"tls_per_s": tls.measure(self.testbed, self.plan.flow, TLS_S).per_s}

    def _held(self) -> Figures:
        return {"held": float(held.measure(self.testbed, self.plan.flow).open)}

    def _udp(self) -> Figures:
        if self.plan.datagrams is None:
            raise onhost.ProgramError("no UDP flow between two hosts is open under every arm")
        got = udp.measure(self.testbed, self.plan.datagrams, UDP_S)
        return {"udp_loss": got.loss, "udp_jitter_us": got.jitter_us}

    def _bulk(self) -> Figures:
        before = cpu.read(self.testbed)
        bps = datapath.bulk(self.testbed, self.plan.flow)
        spent = cpu.between(before, cpu.read(self.testbed))
        each = spent.per_gigabit_s(datapath.BULK_BITS if bps else 0.0)
        return {"bulk_bps": bps, **{f"cpu_{source}_s_per_gb": value for source, value in each.items()}}


def _rate(got: LoopResult) -> float | None:
    return got.n / got.elapsed_s if got.n and not got.errors else None


def raw(got: LoadWindow) -> dict[str, object]:
    """A window as it is kept: the whole certificate, every phase, latencies as histograms, locust's own statistics."""
    window = got.window
    return {"rate": got.rate, "own_us": got.own_us, "figures": got.figures, "invalid": window.invalid,
            "checks": [asdict(check) for check in window.certificate.checks], "errors": window.errors,
            "phases": {client: asdict(times) for client, times in window.phases.items()}, "cpu": window.cpu,
            "lag_p99_us": window.lag_p99_us, "visits": window.visits, "finished": window.finished,
            "locust": window.locust, "hdr": {name: encoded(values) for name, values in (
                ("from_intended_us", window.from_intended_us), ("ttfb_us", window.ttfb_us),
                ("ttlb_us", window.ttlb_us))}}
