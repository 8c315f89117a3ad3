"""From what a continuous probe saw around a fault to leak-seconds and outage-seconds. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.analysis.beats import RATE, TIMEOUT_S, Beat, columns
from bench.analysis.exposure import NOTHING, Exposure, Sample, any_of, exposure, resolution, total
from lab.model import Flow

PHASES = ("fault", "repair", "after")
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Times:
    """Moments of one episode (CLOCK_MONOTONIC): probed from `begin`, the fault, its repair, in order again, the end."""

    begin: float
    fault: float
    repair: float
    repaired: float
    end: float


@dataclass(frozen=True, slots=True)
class Meant:
    """By watched flow whether the policy allows it, and whether it is open by what the arm announces."""

    intended: Mapping[Flow, bool]
    expected: Mapping[Flow, bool]

    def guarded(self) -> list[Flow]:
        """Denied, and claimed to be."""
        return [flow for flow, allow in self.intended.items() if not allow and not self.expected[flow]]

    def unguarded(self) -> list[Flow]:
        """Denied by the policy, and open by design."""
        return [flow for flow, allow in self.intended.items() if not allow and self.expected[flow]]

    def served(self) -> list[Flow]:
        """Allowed, and meant to be open."""
        return [flow for flow, allow in self.intended.items() if allow and self.expected[flow]]


@dataclass(frozen=True, slots=True)
class Side:
    """Leaks, or outages. `any`: while at least one flow was so; `flow_seconds`: every flow's seconds, summed.

    `phases`: of `any`, by phase. `flows`: how many were watched; `hit`: how many of them were ever so.
    """

    flows: int
    hit: int
    any: Exposure
    flow_seconds: Exposure
    phases: Mapping[str, Exposure]


@dataclass(frozen=True, slots=True)
class Judged:
    """One episode. `resolution_s`: the longest time between two tries of one flow; what is shorter may be unseen."""

    leak: Side
    outage: Side
    by_design: Side
    window_s: float
    repair_s: float
    resolution_s: float | None
    word: str
    invalid: str | None = None
    tries: int = 0
    unknown: int = 0
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Design:
    """How each episode goes. Seconds; `rate`: ticks of the probe a second; `flood`: new flows a second, overload."""

    hold_s: float = 8.0  # longer than the 5 s of silence after which an agent may open or close
    before_s: float = 1.0
    after_s: float = 2.0
    rate: float = RATE
    flood: float = 20_000.0
    point: str | None = None  # only the enforcement points of this host, or the router


@dataclass(frozen=True, slots=True)
class Row:
    """One arm under one fault. `judged` None: `why` says why there is nothing to say."""

    arm: str
    way: str
    fault: str
    judged: Judged | None
    why: str | None = None
    acted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What `labctl failure` found. `flows`: those watched, by number, with what the policy says of each."""

    scenario: str
    seed: int
    design: Design
    flows: tuple[tuple[str, bool], ...]
    rows: tuple[Row, ...]
    unsupported: Mapping[str, str]
    notes: tuple[str, ...] = ()
    format: int = FORMAT
    timeout_s: float = TIMEOUT_S


def judge(beats: Sequence[Beat], times: Times, before: Meant, after: Meant) -> Judged:
    """What the fault did. `before` and `after`: what is meant until the fault, and from then on."""
    flows = list(after.intended)
    passed = dict(zip(flows, columns(beats, flows, passed=True), strict=True))
    failed = dict(zip(flows, columns(beats, flows, passed=False), strict=True))
    leak, outage = _side(passed, after.guarded(), times), _side(failed, after.served(), times)
    seen = [sample for column in passed.values() for sample in column if sample is not None]
    gaps = [resolution([s for s in column if s is not None], times.fault, times.end) for column in passed.values()]
    return Judged(
        leak, outage, _side(passed, after.unguarded(), times), times.end - times.fault, times.repaired - times.repair,
        max((gap for gap in gaps if gap is not None), default=None), _word(leak, outage),
        _before(passed, failed, times, before), len(seen), sum(not beat.known for beat in beats))


def _side(by_flow: Mapping[Flow, list[Sample | None]], flows: Sequence[Flow], times: Times) -> Side:
    if not flows:
        return Side(0, 0, NOTHING, NOTHING, dict.fromkeys(PHASES, NOTHING))
    chosen = [by_flow[flow] for flow in flows]
    known = [[sample for sample in column if sample is not None] for column in chosen]
    joined = any_of(chosen)
    edges = (times.fault, times.repair, times.repaired, times.end)
    # Tries that were made before the fault and answered after it are its business only from the next one on.
    hit = sum(any(s.so and s.time >= times.fault for s in column) for column in known)
    return Side(len(flows), hit, exposure(joined, times.fault, times.end),
                total(exposure(column, times.fault, times.end) for column in known),
                {name: exposure(joined, left, right)
                 for name, left, right in zip(PHASES, edges[:-1], edges[1:], strict=True)})


def _word(leak: Side, outage: Side) -> str:
    """What it did to new flows, in a word: fail-open, fail-closed, both, or neither."""
    if not leak.flows and not outage.hit:
        return "guards nothing"
    if leak.hit:
        return "opens and closes" if outage.hit else "opens"
    return "closes" if outage.hit else "holds"


def _before(passed: Mapping[Flow, list[Sample | None]], failed: Mapping[Flow, list[Sample | None]], times: Times,
            meant: Meant) -> str | None:
    """Why the episode says nothing: the arm did not do as it says before anything was done to it."""
    for word, by_flow, flows in (("got through", passed, meant.guarded()), ("failed", failed, meant.served())):
        for flow in flows:
            known = [s for s in by_flow[flow] if s is not None and s.time < times.fault]
            if not known:
                return f"{flow} was not tried before the fault"
            if any(s.so for s in known):
                return f"{flow} {word} before the fault"
    return None
