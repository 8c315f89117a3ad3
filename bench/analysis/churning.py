"""From what a continuous probe saw of newcomers, movers and leavers to distributions over many rounds. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, comb, floor

import numpy as np
from numpy.typing import NDArray

from bench.analysis.beats import RATE, Beat, columns
from bench.analysis.exposure import Settled, any_of, resolution, settled
from lab.model import Flow

STEPS = ("appear", "move", "depart")
FORMAT = 1
LEAST = 6  # rounds: the range of fewer holds the median in less than 95 of 100 cases (2 / 2**n)
PARTS = ("compile_s", "place_s", "point_s", "ready_s")


@dataclass(frozen=True, slots=True)
class Step:
    """One event of one round. Seconds from when labctl was told; None: not by the end of the watch.

    `protected`: when the last denied flow had got through; `served`: when the last allowed one had failed; each None
    where no such flow was watched, with `denied` or `allowed` 0. `leaked`, `failed`: how many of them ever did.
    """

    name: str
    protected: Settled | None
    served: Settled | None
    denied: int
    leaked: int
    allowed: int
    failed: int
    told_s: float
    parts: Mapping[str, float] = field(default_factory=dict)
    points: int = 0
    resolution_s: float | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution over rounds. `never`: rounds in which it did not come about; they count as longer than all others.

    `low`, `high`: a distribution-free 95 % interval of the median; a figure is None where it lies among those.
    """

    n: int
    never: int
    median: float | None
    low: float | None  # both None too with fewer than 6 rounds, which no such interval can be made of
    high: float | None
    p90: float | None
    worst: float | None


@dataclass(frozen=True, slots=True)
class ArmReport:
    """One arm over all rounds. `steps`: by event, every round's, in order; `spreads`: of each of their figures."""

    rounds: int
    steps: Mapping[str, tuple[Step, ...]]
    spreads: Mapping[str, Spread]
    unclaimed: int = 0  # denied flows that were not watched for it, since it does not claim to stop them


@dataclass(frozen=True, slots=True)
class Report:
    """What `labctl churn` found. `plans`: what each round was about, in words."""

    scenario: str
    seed: int
    rounds: int
    arms: Mapping[str, ArmReport]
    unsupported: Mapping[str, str]
    plans: tuple[str, ...]
    notes: tuple[str, ...] = ()
    rate: float = RATE
    format: int = FORMAT


def judge(name: str, beats: Sequence[Beat], told: float, denied: Sequence[Flow], allowed: Sequence[Flow],
          parts: Mapping[str, float], points: int) -> Step:
    """What became of the watched flows since `told` (CLOCK_MONOTONIC)."""
    after = [beat for beat in beats if beat.start >= told]
    passed, failed = columns(after, denied, passed=True), columns(after, allowed, passed=False)
    gaps = [resolution([s for s in column if s], told, float("inf")) for column in (*passed, *failed)]
    return Step(
        name, settled(any_of(passed), told) if denied else None, settled(any_of(failed), told) if allowed else None,
        len(denied), sum(any(s.so for s in column if s) for column in passed),
        len(allowed), sum(any(s.so for s in column if s) for column in failed),
        sum(parts.values()), parts, points, max((gap for gap in gaps if gap is not None), default=None))


def calm(beats: Sequence[Beat], since: float, denied: Sequence[Flow], allowed: Sequence[Flow]) -> bool:
    """Whether every watched flow was tried since a moment, and did each time as it is meant to."""
    after = [beat for beat in beats if beat.start >= since]
    sides = [*columns(after, denied, passed=True), *columns(after, allowed, passed=False)]
    return bool(sides) and all(
        any(sample is not None for sample in column) and not any(sample.so for sample in column if sample is not None)
        for column in sides)


def spread(values: Sequence[float | None]) -> Spread:
    """Of one figure over rounds; None: never."""
    known = np.sort([np.inf if value is None else value for value in values])
    n = len(known)
    if not n:
        return Spread(0, 0, None, None, None, None, None)
    below = _ranks(n)
    ends = (known[below], known[n - 1 - below]) if n >= LEAST else (np.inf, np.inf)
    figures = (_at(known, 0.5), *ends, _at(known, 0.9), known[-1])
    return Spread(n, int(np.isinf(known).sum()), *(None if np.isinf(x) else float(x) for x in figures))


def _at(known: NDArray[np.float64], share: float) -> float:
    """A quantile, linear between its neighbours; where one of them is never, so is it."""
    position = share * (len(known) - 1)
    below, above = float(known[floor(position)]), float(known[ceil(position)])
    return below if below == above else below + (above - below) * (position - floor(position))


def _ranks(n: int) -> int:
    """How many of n sorted values lie outside of the median's interval at each end: sign test, two-sided 5 %."""
    outside, below = 0.0, 0
    while below < n // 2:
        outside += comb(n, below) / 2**n
        if outside > 0.025:
            break
        below += 1
    return max(0, below - 1)
