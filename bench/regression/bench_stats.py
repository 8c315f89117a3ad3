"""Time of the statistics that a report recomputes: intervals of a whole comparison, percentiles of a long window."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.analysis.bootstrap import compare
from bench.analysis.stats import percentile


def test_bootstrapped_intervals_of_a_whole_summary(benchmark: Any) -> None:
    logs = np.random.default_rng(1).normal(0, 0.1, (9, 10, 28))  # nine figures, ten arms, 28 blocks
    figures = [dict(zip("abcdefghij", arms, strict=True)) for arms in logs]
    got = benchmark(lambda: [compare(arms) for arms in figures])
    assert all(effect.n == 28 for figure in got for effect in figure.values())


def test_percentiles_of_a_million_latencies(benchmark: Any) -> None:
    values = np.random.default_rng(1).lognormal(5, 1, 1_000_000)
    got = benchmark(lambda: [percentile(values, p) for p in (50, 90, 99, 99.9)])
    assert got == sorted(got)
