"""How enforcement bears more and more pairs that talk at once: a curve for each arm, and where it bends. Pure.

Every pair offers the same rate, whatever comes of it, and is timed from when it should have begun: what is not kept up
with shows in what is achieved and in the time it takes. An arm *bears* a number of pairs where it achieves nearly all
that is offered and its slowest hundredth is not far slower than with the fewest pairs. The knee is the largest number
up to which it bears every one that was tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

ACHIEVED_SHARE, BLOWUP, SLACK_US = 0.97, 5.0, 5_000.0


@dataclass(frozen=True, slots=True)
class Point:
    """One window: `offered` and `achieved` connections a second, all pairs together; latencies from when due, in µs."""

    arm: str
    round: int
    pairs: int
    offered: float
    achieved: float
    errors: int
    p50_us: float
    p99_us: float


@dataclass(frozen=True, slots=True)
class Step:
    """One number of pairs, over all rounds: medians, and the lowest and highest round."""

    pairs: int
    offered: float
    achieved: float
    achieved_low: float
    achieved_high: float
    p50_us: float
    p99_us: float
    p99_low_us: float
    p99_high_us: float
    borne: bool


@dataclass(frozen=True, slots=True)
class Curve:
    """One arm. `knee`: pairs; 0: not even the fewest; `bends`: whether more were tried than it bears."""

    arm: str
    steps: tuple[Step, ...]
    knee: int
    bends: bool
    capacity: float  # the most that it achieved, connections a second


def curve(arm: str, points: Sequence[Point]) -> Curve:
    """The curve of `arm`. Raises ValueError where there is no point of it."""
    own = [point for point in points if point.arm == arm]
    if not own:
        raise ValueError(f"no window of {arm}")
    numbers = sorted({point.pairs for point in own})
    quiet = median(point.p99_us for point in own if point.pairs == numbers[0])
    steps = tuple(_step([point for point in own if point.pairs == number], quiet) for number in numbers)
    borne = 0
    while borne < len(steps) and steps[borne].borne:
        borne += 1
    return Curve(arm, steps, steps[borne - 1].pairs if borne else 0, borne < len(steps),
                 max(step.achieved for step in steps))


def _step(points: Sequence[Point], quiet_us: float) -> Step:
    achieved, slow = [p.achieved for p in points], [p.p99_us for p in points]
    offered = median(p.offered for p in points)
    borne = median(achieved) >= ACHIEVED_SHARE * offered and median(slow) <= BLOWUP * quiet_us + SLACK_US
    return Step(points[0].pairs, offered, median(achieved), min(achieved), max(achieved),
                median(p.p50_us for p in points), median(slow), min(slow), max(slow), borne)
