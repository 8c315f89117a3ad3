"""Attempts (or time) to compromise over many campaigns, those that never got there counted as censored. Pure.

Kaplan and Meier, "Nonparametric Estimation from Incomplete Observations", JASA 53 (1958), as scipy has it; pointwise
intervals by the log-log transformation of Greenwood's variance; the median's by where these cross one half
(Brookmeyer and Crowley, Biometrics 38, 1982).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Curve:
    """The share not yet compromised after each time at which something ended, with its 95 % interval."""

    times: tuple[float, ...]
    surviving: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Middle:
    """The median of `n` campaigns, `reached` of which got there, and its 95 % interval; None: beyond what was seen."""

    median: float | None
    low: float | None
    high: float | None
    n: int
    reached: int


@dataclass(frozen=True, slots=True)
class Multiple:
    """How many times a median is another's, with a 95 % interval; None: beyond all that was seen.

    `never`: fewer than half of the campaigns got there, though half of the baseline's did: there is no multiple.
    """

    ratio: float | None
    low: float | None
    high: float | None
    never: bool


def kaplan_meier(spent: Sequence[float], reached: Sequence[bool]) -> Curve:
    """The survival curve of `spent` (one number a campaign); where not `reached`, it was censored there."""
    if not spent:
        return Curve((), (), (), ())
    sample = stats.CensoredData.right_censored(np.asarray(spent, float), ~np.asarray(reached, bool))
    with warnings.catch_warnings():  # the transformation has no value where nobody or everybody is left
        warnings.simplefilter("ignore")
        curve = stats.ecdf(sample).sf
        between = curve.confidence_interval(0.95, method="log-log")
    surviving = curve.probabilities
    low = np.where(np.isnan(between.low.probabilities), surviving, between.low.probabilities)
    high = np.where(np.isnan(between.high.probabilities), surviving, between.high.probabilities)
    return Curve(*(tuple(float(x) for x in column) for column in (curve.quantiles, surviving, low, high)))


def middle(spent: Sequence[float], reached: Sequence[bool]) -> Middle:
    """The median time or number of attempts, with its interval."""
    curve = kaplan_meier(spent, reached)
    return Middle(_crossing(curve.times, curve.surviving), _crossing(curve.times, curve.low),
                  _crossing(curve.times, curve.high), len(spent), sum(reached))


def _crossing(times: Sequence[float], share: Sequence[float]) -> float | None:
    return next((t for t, s in zip(times, share, strict=True) if s <= 0.5), None)


def multiple(spent: Sequence[float], reached: Sequence[bool], base: Sequence[float], base_reached: Sequence[bool],
             seed: int) -> Multiple:
    """The median of the first over that of `base`; both in the order of the same seeds, which are resampled together.

    The interval is the bootstrap's, by percentiles, with medians beyond what was seen as infinite.
    """
    ours, theirs = _values(spent, reached), _values(base, base_reached)
    rng = np.random.default_rng(seed)
    with np.errstate(invalid="ignore"):
        ratio = _median(ours) / _median(theirs)
        picks = rng.integers(0, len(ours), (RESAMPLES, len(ours)))
        drawn = _median(ours[picks]) / _median(theirs[picks])
    if math.isnan(float(ratio)) or np.isnan(drawn).any():  # the baseline was not compromised often enough either
        return Multiple(None, None, None, never=False)
    low, high = np.percentile(drawn, [2.5, 97.5], method="closest_observation")
    return Multiple(_finite(ratio), _finite(low), _finite(high), never=math.isinf(ratio))


def _values(spent: Sequence[float], reached: Sequence[bool]) -> NDArray[np.float64]:
    """Never is later than anything that was seen: right for medians, since who stopped had nothing left to try."""
    return np.where(np.asarray(reached, bool), np.asarray(spent, float), np.inf)


def _median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lower median along the last axis: the time by which half had been compromised, as the curve has it."""
    at = (values.shape[-1] + 1) // 2 - 1
    found: NDArray[np.float64] = np.partition(values, at, axis=-1)[..., at]
    return found


def _finite(value: float | NDArray[np.float64]) -> float | None:
    return float(value) if math.isfinite(float(value)) else None
