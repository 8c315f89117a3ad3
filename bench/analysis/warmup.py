"""Where a series becomes steady: how much of a visit, or of a long run, is warm-up and counts for nothing. Pure."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from bench.analysis.bootstrap import MIN_BLOCKS, freedom, trimmed

BATCH = 5
TOLERANCE = 0.02  # of the steady value: a smaller difference is not worth the time that discarding it costs
LEVEL = 0.01  # of calling steady visits unsteady, all positions together


def mser(series: ArrayLike, batch: int = BATCH) -> int | None:
    """How many values at the start of one long series to discard: MSER-5 (White 1997; Hoad et al. 2010).

    The cut that leaves the smallest standard error of the mean of batch means. None if the best cut lies in the second
    half: such a series was never steady, or is too short to tell. Raises ValueError below four batches.
    """
    values = np.asarray(series, dtype=np.float64)
    count = len(values) // batch
    if count < 4:
        raise ValueError(f"mser: {len(values)} values are {count} batches of {batch}; at least four are needed")
    means = values[:count * batch].reshape(count, batch).mean(axis=1)
    # The last few batches are alike by luck in one series of fifteen: no cut leaves less than a quarter.
    errors = [float(means[cut:].var()) / (count - cut) for cut in range(count - max(2, count // 4) + 1)]
    best = int(np.argmin(errors))
    return best * batch if best <= count // 2 else None


def unsteady(visits: ArrayLike) -> int | None:
    """How many windows at the start of every visit to discard, from many visits of an arm: (visits, windows), above 0.

    Each position is compared, within its visit, with the second half of the visit; over visits the difference is
    tested (trimmed mean, Holm over positions at 1 %). A position is unsteady if the difference is found and is more
    than 2 %; all up to the last unsteady one are discarded. None if the last of the first half is itself unsteady: the
    visit is too short. One visit says nothing about warm-up, because the machine drifts as much as an arm warms up.
    """
    logs = np.log(np.asarray(visits, dtype=np.float64))
    if logs.ndim != 2 or len(logs) < MIN_BLOCKS or logs.shape[1] < 4:
        raise ValueError(f"unsteady: {logs.shape} is too little; at least {MIN_BLOCKS} visits of 4 windows are needed")
    half = logs.shape[1] // 2
    found = np.flatnonzero(_differing(logs[:, :half] - logs[:, half:].mean(axis=1, keepdims=True)))
    if not found.size:
        return 0
    last = int(found[-1])
    return last + 1 if last + 1 < half else None


def _differing(against_steady: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which positions (columns) lie off by more than the tolerance, over visits (rows)."""
    centre, error = trimmed(against_steady.T)
    t = np.abs(centre) / np.where(error > 0, error, np.finfo(np.float64).tiny)
    p = 2 * stdtr(freedom(len(against_steady)), -t)
    order = np.argsort(p)
    rejected = np.zeros(len(p), dtype=np.bool_)
    for rank, position in enumerate(order):
        if p[position] > LEVEL / (len(p) - rank):
            break
        rejected[position] = True
    result: NDArray[np.bool_] = rejected & (np.abs(centre) > math.log1p(TOLERANCE))
    return result
