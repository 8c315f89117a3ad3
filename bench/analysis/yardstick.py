"""The machine's own speed taken out of short windows. Pure.

A shared machine changes its speed within a second by half (a neighbour on the same core, a clock that changes). Each
window is therefore read between two readings of a yardstick: a fixed piece of kernel work on the same processor that
no enforcer touches. What `none` costs at a given reading is learnt from the baseline's windows of the same run; each
window is told relative to that. A window whose two readings disagree saw a change and is discarded, whichever arm it
is of. On 2,000 recorded windows this divides the minimum detectable effect by about five (tests/data/blocks).

The readings must not depend on the arm. `moved` tests that on the run itself; where they do, do not adjust.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.analysis.bootstrap import Effect, compare

STABLE = 0.10  # largest relative difference of the readings before and after a window that counts
MIN_STABLE = 2  # windows of a visit; fewer say nothing
KNOTS = 20  # points of the curve; each stands for at least MIN_PER_KNOT windows
MIN_PER_KNOT = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Windows:
    """Parallel arrays, one entry a window: the figure (above 0, in its unit), the yardstick before and after (us)."""

    values: Floats
    before: Floats
    after: Floats

    @classmethod
    def of(cls, values: Sequence[float | None], before: ArrayLike, after: ArrayLike) -> Windows:
        """From plain sequences of one length; a window that has no value is NaN."""
        cells = np.array([math.nan if v is None else v for v in values], dtype=np.float64)
        return cls(cells, np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64))

    @property
    def steady(self) -> NDArray[np.bool_]:
        """Which windows count: a value, and a machine that did not change its speed meanwhile."""
        usable = np.isfinite(self.values) & (self.values > 0) & (self.before > 0) & (self.after > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            change = np.abs(np.log(self.after / self.before))
        result: NDArray[np.bool_] = usable & (change < math.log1p(STABLE))
        return result

    @property
    def reading(self) -> Floats:
        """log of the yardstick over each window: the geometric mean of the two readings."""
        with np.errstate(invalid="ignore", divide="ignore"):
            result: Floats = (np.log(self.before) + np.log(self.after)) / 2
        return result

    def __add__(self, other: Windows) -> Windows:
        return Windows(*(np.concatenate(pair) for pair in ((self.values, other.values), (self.before, other.before),
                                                           (self.after, other.after))))


@dataclass(frozen=True, slots=True)
class Curve:
    """What the baseline's figure is at a reading, in logarithms: line segments between `knots`, level beyond them.

    `usual` is the log of the figure at the run's median reading, to which adjusted figures are brought.
    """

    knots: Floats
    levels: Floats
    usual: float

    def at(self, reading: Floats) -> Floats:
        result: Floats = np.interp(reading, self.knots, self.levels)
        return result


def learn(baseline: Windows) -> Curve | None:
    """The curve through the baseline's steady windows: the median figure in each of up to 20 equal shares by reading.

    None if there are fewer than 20 such windows. The figure may rise or fall with the reading; nothing is assumed.
    """
    kept = baseline.steady
    reading, logs = baseline.reading[kept], np.log(baseline.values[kept])
    if len(logs) < 2 * MIN_PER_KNOT:
        return None
    order = np.argsort(reading)
    shares = np.array_split(order, min(KNOTS, len(logs) // MIN_PER_KNOT))
    knots = np.array([np.median(reading[share]) for share in shares])
    levels = np.array([np.median(logs[share]) for share in shares])
    return Curve(knots, levels, float(np.interp(np.median(reading), knots, levels)))


def visit(windows: Windows, curve: Curve | None) -> float | None:
    """One figure of one visit: the median of its steady windows, each brought to the run's median speed of the machine.

    Without a curve the median of all windows, as measured. None if fewer than two windows count.
    """
    if curve is None:
        present = windows.values[np.isfinite(windows.values) & (windows.values > 0)]
        return float(np.median(present)) if len(present) >= MIN_STABLE else None
    kept = windows.steady
    if np.count_nonzero(kept) < MIN_STABLE:
        return None
    relative = np.log(windows.values[kept]) - curve.at(windows.reading[kept])
    return math.exp(float(np.median(relative)) + curve.usual)


def moved(arms: dict[str, Floats], base: Floats) -> dict[str, Effect]:
    """The arms under which the yardstick itself reads otherwise than under `none`: their figures must not be adjusted.

    One reading (log) a block and arm, NaN where there is none. At 5 % for all arms together.
    """
    found = compare({name: readings - base for name, readings in arms.items()})
    return {name: effect for name, effect in found.items()
            if effect.family_low is not None and effect.family_high is not None
            and not effect.family_low <= 1.0 <= effect.family_high}
