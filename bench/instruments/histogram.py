"""Latencies as HdrHistogram writes them, so that any of its readers can merge windows and ask other percentiles."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

LOWEST, HIGHEST, DIGITS = 1, 3_600_000_000, 3  # tenths of a microsecond: up to six minutes, each to a thousandth
UNIT = "tenths of a microsecond"


def encoded(latencies_us: ArrayLike) -> dict[str, Any]:
    """`blob`: HdrHistogram V2, compressed, in base64 (https://github.com/HdrHistogram); `n` values in `unit`.

    A value above six minutes counts as six minutes; `over` says how many. NaN are left out.
    """
    from hdrh.histogram import HdrHistogram

    values = np.asarray(latencies_us, dtype=np.float64)
    values = values[np.isfinite(values)]
    tenths = np.clip(np.rint(values * 10), LOWEST, HIGHEST).astype(np.int64)
    histogram = HdrHistogram(LOWEST, HIGHEST, DIGITS)
    for value, count in zip(*np.unique(tenths, return_counts=True), strict=True):
        histogram.record_value(int(value), int(count))
    return {"blob": histogram.encode().decode("ascii"), "n": len(values), "unit": UNIT,
            "over": int(np.count_nonzero(values * 10 > HIGHEST))}


def percentile(record: dict[str, Any], q: float) -> float | None:
    """The q-th percentile of what `encoded` made, in microseconds; None of nothing."""
    from hdrh.histogram import HdrHistogram

    histogram = HdrHistogram.decode(record["blob"])
    return histogram.get_value_at_percentile(q) / 10 if record["n"] else None
