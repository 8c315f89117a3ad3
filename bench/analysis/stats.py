"""Percentiles, medians and bounds. Pure: numbers in, numbers out. Effects and intervals: `bench.analysis.bootstrap`.

The unit of repetition is the block: each block measured every arm once, so an arm is compared with the baseline of its
own block and the interval is over blocks. A sample inside a block (one connection of thousands) is not a repetition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

Blocks = Sequence[float | None]


def percentile(values_us: ArrayLike, percent: float) -> float | None:
    """The value at `percent` as HdrHistogram defines it, on raw values: never interpolated, never above the maximum.

    It is the smallest recorded value that at least `percent` of all are equal to or below
    (https://github.com/HdrHistogram/HdrHistogram, getValueAtPercentile). None if there are no values.
    """
    values = np.asarray(values_us, dtype=np.float64)
    if not values.size:
        return None
    # The small amount keeps 99 % of 100 at the 99th value: 0.99 * 100 is a hair above 99 in binary.
    rank = max(1, math.ceil(percent / 100.0 * values.size - 1e-9))
    return float(np.partition(values, rank - 1)[rank - 1])


def median(blocks: Blocks) -> float | None:
    """The median of the blocks that were measured; None if none was."""
    present = [b for b in blocks if b is not None and math.isfinite(b)]
    return float(np.median(present)) if present else None


def zero_bound(n: int) -> float | None:
    """The 95 % upper bound of a rate of which n probes showed none: 3/n (rule of three), at most 1. None for n = 0."""
    return min(1.0, 3.0 / n) if n > 0 else None
