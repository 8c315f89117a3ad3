"""Trials drawn from recorded windows (tests/data/blocks): what a run of the recommended design would have seen.

A visit is a contiguous stretch of the record, so its windows hang together as they did. The visits of one block lie
two to eight seconds apart, as the cells of a block do; blocks are drawn apart from each other.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.random import Generator
from numpy.typing import NDArray

from bench.analysis.yardstick import Windows, learn

Floats = NDArray[np.float64]
RECORD = Path(__file__).parents[1] / "data" / "blocks" / "windows.npz"
WINDOWS = 16  # of a visit
LEARNT = 400  # windows, fewer than a run's own baseline has
APART = (40, 150)  # windows between the visits of one block: 2 to 8 s


@cache
def series(kind: str) -> dict[str, Floats]:
    """One recorded series by field, each an array over windows."""
    with np.load(RECORD) as record:
        return {str(name): record[kind][..., i].astype(np.float64) for i, name in enumerate(record["fields"])}


def windows(kind: str, field: str) -> Windows:
    """A series as windows between yardsticks: the reading after a window is the one before the next."""
    got = series(kind)
    return Windows(got[field][:-1], got["net_us"][:-1], got["net_us"][1:])


@cache
def visits(kind: str, field: str = "p50_us", adjusted: bool = True) -> Floats:
    """log of the figure of the visit that begins at each recorded window; NaN where too little was steady."""
    found = windows(kind, field)
    logs = np.log(found.values)
    if adjusted:
        curve = learn(Windows(found.values[:LEARNT], found.before[:LEARNT], found.after[:LEARNT]))
        assert curve is not None
        logs = np.where(found.steady, logs - curve.at(found.reading), np.nan)
    stretches = sliding_window_view(logs, WINDOWS)
    enough = np.isfinite(stretches).sum(axis=1) >= 2
    medians = np.full(len(stretches), np.nan)
    medians[enough] = np.nanmedian(stretches[enough], axis=1)
    return medians


def blocks(rng: Generator, trials: int, count: int, arms: int, kind: str = "crr", field: str = "p50_us",
           adjusted: bool = True) -> Floats:
    """A/A log-ratios of `arms` arms to one baseline, (trials, arms, blocks): the truth is 0."""
    logs = visits(kind, field, adjusted)
    places = rng.integers(0, len(logs), (trials, 1, count))
    steps = rng.integers(*APART, (trials, arms, count)) * rng.choice([-1, 1], (trials, arms, count))
    found: Floats = logs[(places + steps) % len(logs)] - logs[places]
    return found
