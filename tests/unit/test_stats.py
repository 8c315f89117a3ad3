"""Intervals cover what they claim to, noise is not named a difference, percentiles are HdrHistogram's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from numpy.random import Generator
from numpy.typing import NDArray

from bench.analysis import stats
from bench.analysis.bootstrap import Effect, compare, log_ratios
from bench.analysis.stats import percentile, zero_bound

Noise = Callable[[Generator, int], NDArray[np.float64]]

# What one block's log-ratio may look like: clean, heavy-tailed, and with a noisy neighbour in one block of ten.
NOISES: dict[str, Noise] = {
    "normal": lambda rng, n: rng.normal(0, 0.03, n),
    "t3": lambda rng, n: 0.03 * rng.standard_t(3, n),
    "laplace": lambda rng, n: rng.laplace(0, 0.03, n),
    "contaminated": lambda rng, n: rng.normal(0, 0.03, n) * np.where(rng.random(n) < 0.1, 5, 1),
    "skewed parts": lambda rng, n: np.log1p(rng.exponential(0.1, n)) - np.log1p(rng.exponential(0.1, n)),
}


def effect(arm: Sequence[float | None], base: Sequence[float | None]) -> Effect:
    return compare({"arm": log_ratios(arm, base)})["arm"]


@pytest.mark.parametrize("blocks", [3, 4, 8])
@pytest.mark.parametrize("noise", NOISES)
def test_the_interval_of_few_blocks_covers_the_truth_as_often_as_it_says(noise: str, blocks: int) -> None:
    rng, truth, trials = np.random.default_rng(7), 0.87, 4000
    hits = 0
    for _ in range(trials):
        base = np.exp(rng.normal(0, 0.2, blocks)) * 12000  # blocks differ from each other; pairing takes that out
        arm = base * truth * np.exp(NOISES[noise](rng, blocks))
        got = effect(list(arm), list(base))
        assert got.low is not None and got.high is not None
        hits += got.low <= truth <= got.high
    assert 0.92 <= hits / trials <= 0.985


def test_pairing_removes_what_blocks_have_in_common() -> None:
    base = [100.0, 200.0, 400.0, 800.0]
    got = effect([b * 0.9 for b in base], base)
    assert got.ratio == pytest.approx(0.9) and got.low == pytest.approx(0.9) and got.n == 4


def test_a_missing_block_is_left_out_on_both_sides() -> None:
    full = effect([1.1, 1.2, 1.3, 1.15], [1.0, 1.0, 1.0, 1.0])
    got = effect([1.1, None, 1.2, 1.3, 7.0, math.nan, 1.15, 0.0], [1.0, 1.0, 1.0, 1.0, None, 1.0, 1.0, 1.0])
    assert got.n == full.n == 4
    assert (got.ratio, got.low, got.high) == pytest.approx((full.ratio, full.low, full.high))


def test_too_few_blocks_give_no_interval() -> None:
    assert effect([None], [1.0]).n == 0 and effect([None], [1.0]).ratio is None
    got = effect([2.0, 2.0], [1.0, 1.0])
    assert got.ratio == pytest.approx(2.0) and got.low is None and got.p is None and got.n == 2


def test_blocks_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        effect([1.0, 2.0], [1.0])


def test_percentiles_are_those_of_hdrhistogram() -> None:
    rng = np.random.default_rng(2)
    values = np.rint(rng.lognormal(5, 1, 5003))
    histogram = HdrHistogram(1, 10_000_000, 5)
    for value in values:
        histogram.record_value(int(value))
    for percent in (50.0, 90.0, 99.0, 99.9, 100.0):
        assert percentile(values, percent) == pytest.approx(histogram.get_value_at_percentile(percent), rel=2e-3)
    assert percentile(range(1, 101), 99) == 99
    assert percentile([3.0], 0.0) == 3.0
    assert percentile([], 50) is None


def test_zero_of_n_is_bounded_by_three_over_n() -> None:
    assert zero_bound(600) == 0.005
    assert zero_bound(2) == 1.0
    assert zero_bound(0) is None
    # the bound is what it says: with a true rate of 3/n, none of n is seen in 5 % of cases
    unseen = (1 - 3 / 600) ** 600
    assert unseen == pytest.approx(0.05, abs=0.001)


def test_the_median_skips_what_was_not_measured() -> None:
    assert stats.median([1.0, None, 3.0, math.nan, 2.0]) == 2.0
    assert stats.median([None]) is None
