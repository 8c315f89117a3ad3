"""On recorded noise: intervals cover, noise is not named a difference, arms do not add up to false alarms.

Each claim is shown next to a method that fails it on the same trials.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import stdtrit
from scipy.stats import binom

from bench.analysis.bootstrap import Effect, compare, mde, trimmed
from bench.analysis.sequential import LOOK_CONFIDENCE, due, look
from tests.unit import recorded

Floats = NDArray[np.float64]
TRIALS, BLOCKS = 4000, 28
TRUTH = 1.37


@cache
def trials(kind: str = "crr", arms: int = 1, count: int = BLOCKS, adjusted: bool = True,
           number: int = TRIALS) -> Floats:
    """A/A trials, (trials, arms, blocks), by a seed of their own."""
    rng = np.random.default_rng([len(kind), arms, count, adjusted])
    return recorded.blocks(rng, number, count, arms, kind, adjusted=adjusted)


def alone(columns: Floats) -> list[Effect]:
    """Each row's effect and its own interval, in bulk."""
    found: list[Effect] = []
    for part in np.array_split(columns, math.ceil(len(columns) / 200)):
        found += compare({str(i): row for i, row in enumerate(part)}, resamples=499).values()
    return found


def coverage(columns: Floats, truth: float = 1.0) -> float:
    return float(np.mean([e.low is not None and e.high is not None and e.low <= truth <= e.high
                          for e in alone(columns)]))


@pytest.mark.parametrize("kind", ["crr", "rr"])
def test_intervals_cover_the_truth_in_93_to_97_per_cent(kind: str) -> None:
    assert 0.93 <= coverage(trials(kind)[:, 0] + math.log(TRUTH), TRUTH) <= 0.97


def test_the_percentile_bootstrap_of_eight_blocks_does_not() -> None:
    x = trials(count=8)[:, 0]
    x = np.where(np.isnan(x), 0.0, x)
    drawn = x[:, np.random.default_rng(1).integers(0, 8, (499, 8))].mean(axis=-1)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    assert np.mean((low <= 0) & (high >= 0)) < 0.93


def test_eight_blocks_get_an_interval_that_covers_too() -> None:
    assert 0.93 <= coverage(trials(count=8)[:, 0] + math.log(TRUTH), TRUTH) <= 0.98


def test_false_alarms_over_aa_are_within_the_nominal_rate() -> None:
    alarms = sum(e.p is not None and e.low is not None and e.high is not None and not e.low <= 1 <= e.high
                 for e in alone(trials()[:, 0]))
    assert alarms <= binom.ppf(0.999, TRIALS, 0.05)


def family_alarms(arms: int, number: int) -> tuple[int, int]:
    """Runs with a false alarm in any of `arms`: by the family's intervals, and by each arm's own."""
    together = single = 0
    for run in trials(arms=arms, number=number):
        found = compare(dict(zip("abcdefgh", run, strict=False)), resamples=499).values()
        together += any(not e.family_low <= 1 <= e.family_high for e in found if e.family_low and e.family_high)
        single += any(not e.low <= 1 <= e.high for e in found if e.low and e.high)
    return together, single


def test_four_arms_raise_no_more_false_alarms_than_one() -> None:
    number = 1500
    together, single = family_alarms(4, number)
    limit = binom.ppf(0.999, number, 0.05)
    assert together <= limit
    assert single > limit, "each arm's own interval would accuse too often: the family's is needed"


def test_the_family_p_agrees_with_the_family_interval() -> None:
    for run in trials(arms=4, number=1500)[:200] + math.log(1.02):
        for e in compare(dict(zip("abcd", run, strict=True)), resamples=499).values():
            assert e.family_low is not None and e.family_high is not None and e.p is not None
            if abs(e.p - 0.05) > 0.004:
                assert (e.p < 0.05) == (not e.family_low <= 1 <= e.family_high)


def test_the_design_detects_three_per_cent_and_only_with_the_yardstick() -> None:
    sizes = [float(np.median([mde(run[0]) or math.inf for run in trials(adjusted=adjusted)[:500]]))
             for adjusted in (True, False)]
    assert sizes[0] <= 0.03
    assert sizes[1] > 0.10


def test_an_effect_of_that_size_is_found_four_times_in_five() -> None:
    x = trials()[:1000, 0]
    size = float(np.median([mde(row) or math.inf for row in x]))
    assert 0.72 <= 1 - coverage(x + math.log1p(size)) <= 0.90


def test_unpaired_arms_are_lost_in_the_drift_of_the_machine() -> None:
    """Two arms measured one after the other, each as a whole, as the field's comparisons do it."""
    logs, rng, accused = recorded.visits("crr", adjusted=False), np.random.default_rng(4), 0
    for _ in range(1000):
        at = rng.integers(0, len(logs), 2)
        (c0, e0), (c1, e1) = (trimmed(logs[(start + np.arange(BLOCKS) * recorded.WINDOWS // 4) % len(logs)])
                              for start in at)
        accused += abs(c1 - c0) > float(stdtrit(2 * BLOCKS - 2, 0.975)) * math.hypot(float(e0), float(e1))
    assert accused / 1000 > 0.10


def stopped(run: Floats, target: float, confidence_of_looks: bool) -> tuple[bool, int]:
    """Whether the interval covers 0 where a run of up to 64 blocks stops, and how many it took."""
    for count in range(16 if confidence_of_looks else 4, len(run) + 1):
        last = count == len(run)
        if confidence_of_looks:
            if not due(count) and not last:
                continue
            found = look({"arm": run[:count]}, target)
            effect, enough = found.effects["arm"], found.enough
        else:  # after every block, at 95 %
            effect = compare({"arm": run[:count]}, resamples=199)["arm"]
            enough = bool(effect.low and effect.high and math.sqrt(effect.high / effect.low) - 1 <= target)
        if enough or last:
            return bool(effect.low and effect.high and effect.low <= 1 <= effect.high), count
    raise AssertionError("a run has at least as many blocks as the first look")


def test_stopping_when_narrow_keeps_the_coverage() -> None:
    """By the same rule in bulk, with Student's t where the run bootstraps: 4,000 runs in a second."""
    x = np.nan_to_num(trials(count=64)[:, 0])
    covered, counts = _bulk_stop(x, math.log(1.02), [n for n in range(16, 65) if due(n)], LOOK_CONFIDENCE)
    assert 0.94 <= covered <= 0.975
    assert 16 < counts < 64, "the target must be one at which runs stop between the first look and the budget"
    naive, _counts = _bulk_stop(x, math.log(1.02), list(range(4, 65)), 0.95)
    assert naive < 0.93, "looking after every block at 95 % must be seen to fail"


def _bulk_stop(x: Floats, target: float, looks: list[int], confidence: float) -> tuple[float, float]:
    done, covered, taken = (np.zeros(len(x), dtype=kind) for kind in (bool, bool, int))
    for count in looks:
        centre, error = trimmed(x[:, :count])
        half = stdtrit(count - 2 * int(0.2 * count) - 1, 0.5 + confidence / 2) * error
        stop = ~done & ((half <= target) | (count == looks[-1]))
        covered[stop], taken[stop] = np.abs(centre[stop]) <= half[stop], count
        done |= stop
    return float(covered.mean()), float(np.median(taken))


def test_the_rule_itself_stops_where_its_intervals_are_narrow() -> None:
    results = [stopped(run[0], 0.02, True) for run in trials(count=64)[:100]]
    assert sum(covers for covers, _ in results) >= binom.ppf(0.001, 100, 0.95)
    assert all(due(count) for _, count in results)
