"""A planted warm-up is found and nothing else is; a planted machine speed is taken out and nothing else is."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from bench.analysis import bootstrap, warmup, yardstick
from bench.analysis.yardstick import Windows
from bench.instruments.yardstick import Yardstick
from tests.unit import recorded


def no_warm_up(rng: np.random.Generator, visits: int = 24, windows: int = 12) -> np.ndarray:
    """Visits of recorded `none` windows, each a contiguous stretch of them."""
    series = recorded.series("crr")["p50_us"]
    starts = rng.integers(0, len(series) - windows, visits)
    return series[starts[:, None] + np.arange(windows)]


@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_planted_warm_up_is_found_to_the_window(length: int) -> None:
    """Half the cost in its first windows: the arm's daemon has not caught up yet."""
    rng, exact = np.random.default_rng(length), 0
    for _ in range(200):
        visits = no_warm_up(rng, visits=28)
        visits[:, :length] *= 0.5
        exact += warmup.unsteady(visits) == length
    assert exact >= 190


def test_recorded_windows_without_one_are_left_whole() -> None:
    rng, runs = np.random.default_rng(9), 1000
    accused = sum(warmup.unsteady(no_warm_up(rng)) != 0 for _ in range(runs))
    assert accused <= binom.ppf(0.999, runs, warmup.LEVEL)


def test_the_recorded_agent_takes_a_tenth_of_a_second_and_none_takes_nothing() -> None:
    p50 = recorded.series("visits")["p50_us"]  # (visits, none and agent, crr and rr, windows of 50 ms)
    assert warmup.unsteady(p50[:, 0, 0]) == 0
    assert warmup.unsteady(p50[:, 1, 0]) == 2


def test_a_visit_that_never_settles_says_so() -> None:
    climbing = np.exp(0.1 * np.arange(12.0))[None, :] * np.random.default_rng(1).lognormal(0, 0.01, (20, 1))
    assert warmup.unsteady(climbing) is None
    with pytest.raises(ValueError, match="too little"):
        warmup.unsteady(climbing[:2])


@pytest.mark.parametrize("length", [20, 60])
def test_mser_cuts_a_long_series_where_it_settles(length: int) -> None:
    rng, cuts = np.random.default_rng(length), []
    for _ in range(200):
        series = rng.normal(100, 3, 400)
        series[:length] += np.linspace(60, 20, length)
        cuts.append(warmup.mser(series) or 0)
    assert np.mean([cut >= length - warmup.BATCH for cut in cuts]) >= 0.95
    assert np.median(cuts) <= length + 2 * warmup.BATCH
    assert warmup.mser(np.arange(200.0)) is None, "a ramp to the end was never steady"
    with pytest.raises(ValueError, match="at least four"):
        warmup.mser(series[:19])


# --- the yardstick -----------------------------------------------------------------------------


def shared(rng: np.random.Generator, count: int, factor: float = 1.0) -> Windows:
    """A machine of two speeds: figure and yardstick follow it, the figure with a power of its own."""
    speed = np.where(rng.random(count) < 0.5, 1.0, 1.6)
    before = 40 * speed * rng.lognormal(0, 0.01, count)
    values = factor * 50 * speed**1.2 * rng.lognormal(0, 0.02, count)
    return Windows(values, before, before * rng.lognormal(0, 0.01, count))


def test_a_common_speed_is_taken_out_and_the_effect_is_left() -> None:
    rng = np.random.default_rng(1)
    curve = yardstick.learn(shared(rng, 600))
    plain, told = [], []
    for _ in range(200):
        arm, base = shared(rng, 8, 1.1), shared(rng, 8)
        told.append(math.log((yardstick.visit(arm, curve) or math.nan) / (yardstick.visit(base, curve) or math.nan)))
        plain.append(math.log((yardstick.visit(arm, None) or math.nan) / (yardstick.visit(base, None) or math.nan)))
    assert np.mean(told) == pytest.approx(math.log(1.1), abs=0.003)
    assert np.std(told) < np.std(plain) / 5


def test_windows_in_which_the_speed_changed_do_not_count() -> None:
    rng = np.random.default_rng(2)
    curve = yardstick.learn(shared(rng, 600))
    good = shared(rng, 8)
    spoilt = Windows(good.values * 3, good.before, good.before * 1.6)
    assert yardstick.visit(good + spoilt, curve) == pytest.approx(yardstick.visit(good, curve))
    assert yardstick.visit(spoilt, curve) is None
    assert yardstick.learn(spoilt) is None


def test_an_arm_that_moves_the_yardstick_is_named() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(4, 0.05, 28)
    arms = {"honest": base + rng.normal(0, 0.05, 28), "slows": base + 0.1 + rng.normal(0, 0.05, 28)}
    assert set(yardstick.moved(arms, base)) == {"slows"}
    recorded_visits = recorded.series("visits")["net_us"]
    logs = np.log(recorded_visits[:, :, 0]).mean(axis=-1)
    assert not yardstick.moved({"agent-nft": logs[:, 1]}, logs[:, 0]), "the recorded agent leaves it as it is"


# --- properties of the estimate ----------------------------------------------------------------

_LOGS = st.lists(st.floats(-1, 1), min_size=10, max_size=30)


@settings(max_examples=60, deadline=None)
@given(_LOGS, st.floats(-2, 2))
def test_a_common_factor_moves_the_interval_and_nothing_else(logs: list[float], shift: float) -> None:
    x = np.round(np.array(logs), 6)
    one = bootstrap.compare({"a": x}, resamples=99)["a"]
    other = bootstrap.compare({"a": x + shift}, resamples=99)["a"]
    assert one.ratio is not None and other.ratio is not None and one.error is not None and other.error is not None
    assert other.ratio == pytest.approx(one.ratio * math.exp(shift), rel=1e-9)
    assert other.error == pytest.approx(one.error, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(_LOGS, st.integers(0, 9))
def test_a_missing_block_is_as_if_it_had_not_been(logs: list[float], hole: int) -> None:
    x = np.array(logs)
    gap = x.copy()
    gap[hole] = math.nan
    whole, error = bootstrap.trimmed(np.delete(x, hole))
    with_hole, its_error = bootstrap.trimmed(gap)
    assert with_hole == pytest.approx(whole, abs=1e-12) and its_error == pytest.approx(error, abs=1e-12)


def test_one_spoilt_block_in_ten_hardly_matters() -> None:
    x = np.random.default_rng(1).normal(0, 0.03, 20)
    spoilt = x.copy()
    spoilt[[3, 11]] += 5.0
    assert abs(float(bootstrap.trimmed(spoilt)[0] - bootstrap.trimmed(x)[0])) < 0.02
    assert abs(spoilt.mean() - x.mean()) > 0.4, "a mean is carried off"


def test_too_few_blocks_have_an_estimate_and_no_interval() -> None:
    assert bootstrap.compare({}) == {}
    assert bootstrap.compare({"a": np.full(5, math.nan)})["a"] == bootstrap.NOTHING
    got = bootstrap.compare({"a": np.array([0.0, math.log(4)]), "b": np.array([math.nan, 1.0])})
    assert got["a"].ratio == pytest.approx(2) and got["a"].low is None and got["a"].n == 2
    assert got["b"].n == 1
    with pytest.raises(ValueError, match="columns differ in length"):
        bootstrap.compare({"a": np.zeros(3), "b": np.zeros(4)})


def test_log_ratios_leave_a_gap_where_either_side_is_missing() -> None:
    got = bootstrap.log_ratios([2.0, None, 1.0, 0.0, math.inf], [1.0, 1.0, None, 1.0, 1.0])
    assert got[0] == pytest.approx(math.log(2)) and np.isnan(got[1:]).all()


def test_a_reading_takes_little_and_leaves_the_thread_where_it_was() -> None:
    home = os.sched_getaffinity(0)
    stick = Yardstick(max(home))
    try:
        readings = [stick.read() for _ in range(20)]
    finally:
        stick.close()
    assert os.sched_getaffinity(0) == home
    assert min(readings) > 0
