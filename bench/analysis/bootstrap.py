"""Paired effects with intervals bootstrapped over blocks, several arms at once. Pure: numbers in, numbers out.

A column is one comparison (an arm against `none` in one figure), a row is one block, a cell is the logarithm of the
block's ratio, NaN where either side is missing. Whole rows are resampled, so arms that share a block's baseline keep
their dependence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95
POWER = 0.80  # of the minimum detectable effect
MIN_BLOCKS = 3  # fewer have no interval worth the name
MIN_RESAMPLED = 10  # fewer blocks give too few different resamples for a tail: Student's t on the same estimate
TRIM = 0.2  # of the blocks at each end: what a noisy neighbour spoils is left out of the estimate
RESAMPLES = 1999
_SEED = 20050  # fixed, so that a report recomputed from raw data says the same

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Effect:
    """exp(trimmed mean) of `n` paired block log-ratios; None where there are too few blocks to say.

    `low`, `high`: 95 % for this comparison alone. `family_low`, `family_high`: 95 % for all comparisons of the family
    together. `p`: of "the ratio is 1", adjusted for the family. `error`: standard error of log(ratio).
    """

    ratio: float | None
    low: float | None
    high: float | None
    family_low: float | None
    family_high: float | None
    p: float | None
    error: float | None
    n: int


NOTHING = Effect(None, None, None, None, None, None, None, 0)


def log_ratios(arm: Sequence[float | None], base: Sequence[float | None]) -> Floats:
    """One log-ratio a block, NaN where either side is missing, not finite or not above zero. In block order."""
    pairs = np.array([[_or_nan(a), _or_nan(b)] for a, b in zip(arm, base, strict=True)]).reshape(-1, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = np.where(np.isfinite(pairs) & (pairs > 0), pairs, np.nan)
        logs: Floats = np.log(pairs[:, 0] / pairs[:, 1])
    return logs


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def compare(columns: Mapping[str, Floats], confidence: float = CONFIDENCE,
            resamples: int = RESAMPLES) -> dict[str, Effect]:
    """Every comparison of one family, by name: the arms of one figure. All columns have the same blocks in order.

    Interval: symmetric bootstrap-t of the 20 % trimmed mean (Yuen 1974 for its error; Wilcox, Introduction to Robust
    Estimation, 4.4). The family's: the same with the quantile of the largest |t| of any member (Romano and Wolf 2005,
    one step), so that all intervals hold together as often as they say. Below MIN_RESAMPLED blocks: Student's t on the
    same estimate, Bonferroni for the family. Raises ValueError on columns of unlike length.
    """
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError("compare: columns differ in length; give every block a value, NaN where it has none")
    if not columns:
        return {}
    logs = np.stack(list(columns.values()))
    counts = np.isfinite(logs).sum(axis=1)
    centre, error = trimmed(logs)
    found = {name: _estimate(float(c), int(n)) for name, c, n in zip(columns, centre, counts, strict=True)}
    tested = np.flatnonzero(counts >= MIN_BLOCKS)
    if tested.size:
        usable = logs[tested], centre[tested], error[tested]
        few = counts[tested].min() < MIN_RESAMPLED
        single, family, p = _student(*usable, confidence) if few else _resampled(*usable, confidence, resamples)
        names = list(columns)
        for k, i in enumerate(tested):
            found[names[i]] = _effect(centre[i], error[i], int(counts[i]), (single[k], family[k], p[k]))
    return found


def _estimate(centre: float, n: int) -> Effect:
    return Effect(math.exp(centre), None, None, None, None, None, None, n) if n else NOTHING


def _effect(centre: float, error: float, n: int, tails: tuple[float, float, float]) -> Effect:
    alone, together, p = tails[0] * error, tails[1] * error, tails[2]
    with np.errstate(over="ignore"):
        ends = np.exp(np.array([0, -alone, alone, -together, together]) + centre)
    return Effect(float(ends[0]), float(ends[1]), float(ends[2]), float(ends[3]), float(ends[4]), float(p),
                  float(error), n)


def trimmed(logs: Floats) -> tuple[Floats, Floats]:
    """Mean over the last axis without the lowest and highest fifth, and its standard error; NaN are not there.

    Error after Yuen (1974): winsorised deviation over (h sqrt((n - 1) h / (h - 1)) / (n - 1)), h values remaining.
    """
    order = np.sort(logs, axis=-1)  # NaN last
    if not np.isnan(order[..., -1:]).any():
        return _trimmed_whole(order)
    n = np.isfinite(order).sum(axis=-1, keepdims=True)
    cut = (TRIM * n).astype(np.int64)
    kept = n - 2 * cut
    at = np.arange(order.shape[-1])
    last = order.shape[-1] - 1
    low = np.take_along_axis(order, np.minimum(cut, last), axis=-1)
    high = np.take_along_axis(order, np.clip(n - cut - 1, 0, last), axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.where((at >= cut) & (at < n - cut), order, 0.0).sum(axis=-1, keepdims=True) / kept
        drawn_in = np.where(at < n, np.clip(order, low, high), 0.0)
        mean = drawn_in.sum(axis=-1, keepdims=True) / n
        square = np.where(at < n, (drawn_in - mean) ** 2, 0.0).sum(axis=-1, keepdims=True)
        error = np.sqrt(square / (kept * (kept - 1)))
    return centre[..., 0], error[..., 0]


def _trimmed_whole(order: Floats) -> tuple[Floats, Floats]:
    """`trimmed` of sorted values without gaps, several times as fast: a bootstrap does it thousands of times."""
    n = order.shape[-1]
    cut = int(TRIM * n)
    kept = n - 2 * cut
    middle = order[..., cut:n - cut]
    centre = middle.mean(axis=-1)
    low, high = middle[..., 0], middle[..., -1]
    mean = (kept * centre + cut * (low + high)) / n
    square = ((middle - mean[..., None]) ** 2).sum(axis=-1) + cut * ((low - mean) ** 2 + (high - mean) ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        error: Floats = np.sqrt(square / (kept * (kept - 1)))
    return centre, error


def freedom(n: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Degrees of freedom of the trimmed mean of n blocks: those that remain, less one."""
    count = np.asarray(n)
    return count - 2 * (TRIM * count).astype(np.int64) - 1


def _student(logs: Floats, centre: Floats, error: Floats, confidence: float) -> tuple[Floats, Floats, Floats]:
    """Reach of the interval alone and in the family, in errors, and the family's p."""
    df = freedom(np.isfinite(logs).sum(axis=1))
    tail = (1 - confidence) / 2
    p = np.minimum(1.0, 2 * len(logs) * stdtr(df, -_t(centre, error)))
    return stdtrit(df, 1 - tail), stdtrit(df, 1 - tail / len(logs)), p


def _resampled(logs: Floats, centre: Floats, error: Floats, confidence: float,
               resamples: int) -> tuple[Floats, Floats, Floats]:
    """As `_student`, from resampled blocks. A resample that has no spread says nothing of t and counts as extreme.

    Where these alone are beyond the confidence (most blocks equal), the reach is Student's.
    """
    drawn = np.random.default_rng(_SEED).integers(0, logs.shape[1], (resamples, logs.shape[1]))
    again, spread = trimmed(logs[:, drawn])
    t = _t(again - centre[:, None], spread)
    largest = t.max(axis=0)
    student, bonferroni, _p = _student(logs, centre, error, confidence)
    single = _or_else(np.quantile(t, confidence, axis=1, method="higher"), student)
    together = _or_else(np.full(len(logs), np.quantile(largest, confidence, method="higher")), bonferroni)
    p = (1 + (largest[None, :] >= _t(centre, error)[:, None]).sum(axis=1)) / (1 + resamples)
    return single, together, np.where(centre == 0, 1.0, p)


def _or_else(reach: Floats, other: Floats) -> Floats:
    result: Floats = np.where(np.isfinite(reach), reach, other)
    return result


def _t(distance: Floats, error: Floats) -> Floats:
    """|distance| / error; without error 0 where there is no distance, else infinite. NaN (nothing left) is infinite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.abs(distance) / error
    t = np.where(np.isnan(t), np.inf, t)
    result: Floats = np.where((distance == 0) & ~(error > 0), 0.0, t)
    return result


def mde(logs: Floats, confidence: float = CONFIDENCE, power: float = POWER) -> float | None:
    """The smallest relative effect that these blocks show in 4 of 5 runs, from A/A log-ratios: 0.03 is three per cent.

    exp((t_0.975 + t_0.80) * error) - 1. None below three blocks.
    """
    n = int(np.isfinite(logs).sum())
    if n < MIN_BLOCKS:
        return None
    _centre, error = trimmed(logs)
    df = freedom(n)
    return math.expm1(float((stdtrit(df, 0.5 + confidence / 2) + stdtrit(df, power)) * error))
