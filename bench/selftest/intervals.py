"""What an interval says of a planted figure: it came out, it did not, or nobody can tell. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import betaincinv

from bench.analysis.bootstrap import CONFIDENCE, compare

STRICT = 0.999  # a sound machine fails a judgement at this confidence once in a thousand
_SCALE = 100.0  # of differences: their exponential has to stay finite

Outcome = Literal["PASS", "FAIL", "NOISY", "UNSUPPORTED"]
Blocks = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its ends at some confidence; all None where there were too few blocks."""

    value: float | None
    low: float | None
    high: float | None

    def holds(self, value: float, tolerance: float = 0.0) -> bool:
        """Whether `value`, give or take the relative `tolerance`, is inside."""
        return (self.low is not None and self.high is not None
                and self.low <= value * (1 + tolerance) and value * (1 - tolerance) <= self.high)


def difference(of: Blocks, less: Blocks, confidence: float = CONFIDENCE) -> Interval:
    """`of` - `less`, paired by block, in their unit: trimmed mean and bootstrap interval of `bench.analysis`."""
    apart = np.array([math.nan if a is None or b is None else a - b for a, b in zip(of, less, strict=True)])
    found = compare({"": apart / _SCALE}, confidence)[""]
    return Interval(*(None if end is None or not 0 < end < math.inf else math.log(end) * _SCALE
                      for end in (found.ratio, found.low, found.high)))


def against(measured: Blocks, planted: float, confidence: float = CONFIDENCE) -> Interval:
    """measured / planted over blocks, the same way."""
    logs = np.array([math.nan if value is None or value <= 0 else math.log(value / planted) for value in measured])
    found = compare({"": logs}, confidence)[""]
    return Interval(found.ratio, found.low, found.high)


def share(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """successes / n with its exact interval (Clopper and Pearson 1934)."""
    if n == 0:
        return Interval(None, None, None)
    tail = (1 - confidence) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return Interval(successes / n, low, high)


def judged(found: Interval, planted: float, nothing: float, tolerance: float = 0.0) -> Outcome:
    """PASS where `found` has the planted figure and not `nothing`; NOISY where it has both, or there is none."""
    if found.low is None or found.high is None:
        return "NOISY"
    if not found.holds(planted, tolerance):
        return "FAIL"
    return "NOISY" if found.low <= nothing <= found.high else "PASS"
