"""Ratios between arms with intervals, what could have been detected, and percentiles. Pure: numbers in, numbers out.

The unit of repetition is the block: each block measured every arm once, so an arm is compared with the baseline of its
own block and the interval is over blocks. A sample inside a block (one connection of thousands) is not a repetition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from bench.analysis.bootstrap import CONFIDENCE, MIN_BLOCKS, POWER

Blocks = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Ratio:
    """arm / baseline with its 95 % interval over `n` paired blocks. None: too few blocks to say (0, or no interval)."""

    ratio: float | None
    low: float | None
    high: float | None
    n: int


def ratio(blocks_arm: Blocks, blocks_base: Blocks) -> Ratio:
    """Geometric mean of the per-block ratios and its Student-t interval on the logarithms.

    A block in which either side is missing (None, not finite, or not above zero) is left out; `n` is what remains.

    Why this and not a bootstrap: the blocks are few (from ten on, use `bootstrap.compare`). Simulated coverage of a
    nominal 95 % interval at n = 8, over normal, Laplace, t(3), contaminated and spiked log-ratios: this 95.3-97.4 %,
    percentile bootstrap 86-91 %, bootstrap-t 92-96 %, symmetric bootstrap-t 97-98 % with intervals a quarter to twice
    as wide. At n = 4 this still covers 95-97 %, percentile 78-80 %. It also needs no seed.
    """
    logs = _log_ratios(blocks_arm, blocks_base)
    n = len(logs)
    if n == 0:
        return Ratio(None, None, None, 0)
    centre = float(logs.mean())
    if n < MIN_BLOCKS:
        return Ratio(math.exp(centre), None, None, n)
    half = _quantile(n, 0.5 + CONFIDENCE / 2) * float(logs.std(ddof=1)) / math.sqrt(n)
    return Ratio(math.exp(centre), math.exp(centre - half), math.exp(centre + half), n)


def distinguishable(value: Ratio, smallest: float | None = None) -> bool:
    """Whether the interval excludes 1: only then may a report speak of a difference.

    With `smallest` (from `mde`) the effect must also be one that the same blocks could have shown between `none` and
    itself: with nine figures of several arms, some intervals miss 1 by luck, and most of these are small.
    """
    if value.low is None or value.high is None or value.low <= 1.0 <= value.high:
        return False
    return smallest is None or value.ratio is None or abs(math.log(value.ratio)) >= math.log1p(smallest)


def mde(blocks_a: Blocks, blocks_b: Blocks) -> float | None:
    """The smallest relative effect that this many blocks would show in 4 of 5 runs: 0.03 is three per cent.

    From the spread of the A/A log-ratios: exp((t_0.975 + t_0.80) * s / sqrt(n)) - 1, t with n-1 degrees of freedom.
    None below three paired blocks.
    """
    logs = _log_ratios(blocks_a, blocks_b)
    n = len(logs)
    if n < MIN_BLOCKS:
        return None
    spread = float(logs.std(ddof=1)) / math.sqrt(n)
    return math.expm1((_quantile(n, 0.5 + CONFIDENCE / 2) + _quantile(n, POWER)) * spread)


def differing(ratios: Mapping[str, Ratio]) -> tuple[str, ...]:
    """Which figures of an A/A comparison differ, at 5 % for all figures together (Holm 1979).

    Nine figures at 5 % each would accuse an honest instrument in every third run. The p-value of a figure is taken
    back from its interval, which a t interval allows.
    """
    tested = sorted((p, name) for name, value in ratios.items() if (p := p_value(value)) is not None)
    found: list[str] = []
    for rank, (p, name) in enumerate(tested):
        if p > (1 - CONFIDENCE) / (len(tested) - rank):
            break
        found.append(name)
    return tuple(name for name in ratios if name in found)


def p_value(value: Ratio) -> float | None:
    """Two-sided p of "the ratio is 1", from the interval; None where there is no interval."""
    if value.ratio is None or value.low is None or value.high is None:
        return None
    error = math.log(value.high / value.low) / 2 / _quantile(value.n, 0.5 + CONFIDENCE / 2)
    distance = abs(math.log(value.ratio))
    if error == 0.0:
        return 1.0 if distance == 0.0 else 0.0
    return 2.0 * float(stdtr(value.n - 1, -distance / error))


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


def _log_ratios(arm: Blocks, base: Blocks) -> NDArray[np.float64]:
    """One log-ratio a block in which both were measured. The two sequences must be of one length, in block order."""
    pairs = [(a, b) for a, b in zip(arm, base, strict=True) if _usable(a) and _usable(b)]
    return np.array([math.log(a / b) for a, b in pairs if a is not None and b is not None], dtype=np.float64)


def _usable(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _quantile(n: int, probability: float) -> float:
    """Student's t quantile for n blocks."""
    return float(stdtrit(n - 1, probability))
