"""The gate on recorded noise: it finds a planted 10 % regression, accuses hardly ever, and says when it cannot tell."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from bench.analysis import gate
from bench.analysis.gate import Baseline, GateError, judge
from tests.unit import recorded

TRIALS, BLOCKS = 1500, gate.BLOCKS
ARMS = ("agent", "monitor", "chokepoint", "port")
KINDS = {"crr_p50_us": "crr", "rr_p50_us": "rr"}
Run = dict[str, dict[str, tuple[float | None, ...]]]


def runs(seed: int, trials: int, adjusted: bool = True) -> list[Run]:
    """Whole runs without any effect: four arms, two figures."""
    rng = np.random.default_rng(seed)
    drawn = {figure: np.exp(recorded.blocks(rng, trials, BLOCKS, len(ARMS), kind, adjusted=adjusted))
             for figure, kind in KINDS.items()}
    return [{arm: {figure: tuple(None if math.isnan(r) else float(r) for r in drawn[figure][t, a])
                   for figure in KINDS} for a, arm in enumerate(ARMS)} for t in range(trials)]


def slower(run: Run, factor: float, figure: str = "crr_p50_us", arm: str = "agent") -> Run:
    changed = {f: tuple(None if r is None else r * factor for r in rs) if f == figure else rs
               for f, rs in run[arm].items()}
    return {**run, arm: changed}


def test_a_planted_ten_per_cent_is_named_in_99_of_100() -> None:
    found = named = 0
    for before, after in zip(runs(1, TRIALS), runs(2, TRIALS), strict=True):
        got = judge(before, slower(after, 1.10), list(KINDS))
        found += got.outcome == "regression"
        named += any((c.arm, c.figure) == ("agent", "crr_p50_us") for c in got.regressions)
    assert found >= named >= 0.99 * TRIALS


def test_without_a_regression_it_accuses_in_one_of_100_at_most() -> None:
    alarms = told = 0
    for before, after in zip(runs(3, TRIALS), runs(4, TRIALS), strict=True):
        got = judge(before, after, list(KINDS))
        alarms += got.outcome == "regression"
        told += got.outcome == "none"
    assert alarms <= binom.ppf(0.999, TRIALS, gate.LEVEL)
    assert told > 0.95 * TRIALS, "a gate that says nothing but 'noisy' is of no use"


def test_noise_that_would_hide_the_margin_is_said_to_be_too_noisy() -> None:
    """The same windows without the yardstick: nothing found must not pass for nothing there."""
    told = [judge(a, b, list(KINDS)).outcome for a, b in zip(runs(5, 200, False), runs(6, 200, False), strict=True)]
    assert told.count("noisy") >= 0.97 * len(told)
    assert told.count("none") == 0


def test_holm_is_what_keeps_the_level() -> None:
    """The same comparisons, each at 1 % by itself, accuse several times as often."""
    alone = 0
    for before, after in zip(runs(3, 600), runs(4, 600), strict=True):
        alone += any(judge({arm: {f: before[arm][f]}}, after, [f]).outcome == "regression"
                     for arm in ARMS for f in KINDS)
    assert alone > binom.ppf(0.999, 600, gate.LEVEL)


def test_better_is_no_regression_and_for_rates_less_is_worse() -> None:
    rng = np.random.default_rng(8)
    flat: Run = {"a": {f: tuple(np.exp(rng.normal(0, 0.01, BLOCKS))) for f in ("crr_p50_us", "crr_rate")}}
    better = slower(slower(flat, 0.8, "crr_p50_us", "a"), 1.2, "crr_rate", "a")
    assert judge(flat, better, ["crr_p50_us", "crr_rate"]).exit_code == 0
    worse = judge(flat, slower(flat, 0.8, "crr_rate", "a"), ["crr_p50_us", "crr_rate"])
    assert worse.exit_code == 1
    (found,) = worse.regressions
    assert found.figure == "crr_rate" and found.worse == pytest.approx(0.25)


def test_too_few_blocks_are_too_noisy_never_a_pass() -> None:
    few: Run = {"a": {"crr_p50_us": (1.0,) * 9}}
    got = judge(few, few, ["crr_p50_us"])
    assert got.outcome == "noisy" and got.exit_code == 4
    gone = judge({"a": {"crr_p50_us": (1.0, 1.1) * 14}}, {"a": {}}, ["crr_p50_us"])
    assert gone.outcome == "noisy"


def test_an_arm_that_was_not_run_is_an_error_with_a_remedy() -> None:
    with pytest.raises(GateError, match=r"arm b was not run; add it to --arms"):
        judge({"a": {"f": (1.0,)}, "b": {"f": (1.0,)}}, {"a": {"f": (1.0,)}}, ["f"])
    with pytest.raises(GateError, match="none of g is in it"):
        judge({"a": {"f": (1.0,)}}, {"a": {"f": (1.0,)}}, ["g"])


def stored() -> Baseline:
    return Baseline(labctl="0", scenario="three-tier", digest="0" * 64, design={"blocks": 28.0}, seed=1, environment={},
                    ratios={"a": {"crr_p50_us": (1.1, None, 1.2)}})


def test_a_baseline_survives_its_file() -> None:
    text = stored().model_dump_json()
    assert gate.read(text, "base.json") == stored()
    assert json.loads(text)["format"] == 1


def test_a_broken_baseline_is_named_with_its_place() -> None:
    for text, place in (("{}", "labctl"), ('{"format": 2}', "format"), ("nonsense", "the document")):
        with pytest.raises(GateError, match=rf"^base\.json: {place}: .*store a new baseline"):
            gate.read(text, "base.json")


def test_runs_of_another_scenario_or_design_are_not_compared() -> None:
    gate.comparable(stored(), "0" * 64, {"blocks": 28.0}, "base.json")
    with pytest.raises(GateError, match="another scenario"):
        gate.comparable(stored(), "1" * 64, {"blocks": 28.0}, "base.json")
    with pytest.raises(GateError, match=r"measured in another way \(windows\)"):
        gate.comparable(stored(), "0" * 64, {"blocks": 28.0, "windows": 16.0}, "base.json")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.5, 2.0), min_size=12, max_size=30), st.floats(0.1, 10.0))
def test_the_gate_compares_ratios_so_a_common_factor_cancels(ratios: list[float], factor: float) -> None:
    """What scales both runs alike changes neither verdict nor size; and a run is no regression of itself."""
    base: Run = {"a": {"crr_p50_us": tuple(ratios)}}
    got = judge(base, base, ["crr_p50_us"])
    assert got.outcome != "regression"
    scaled = judge(slower(base, factor, arm="a"), slower(base, factor, arm="a"), ["crr_p50_us"])
    assert scaled.outcome == got.outcome
    assert scaled.comparisons[0].worse == pytest.approx(got.comparisons[0].worse, abs=1e-9)
