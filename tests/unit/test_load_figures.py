"""What was measured under load becomes figures: paired, counted where INVALID, told in words."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from bench import load_figures
from bench.analysis.knee import Knee
from bench.blocks import AA
from bench.instruments import histogram
from bench.load_figures import BESIDE, Loads
from bench.loading import LoadCell, LoadRecord, Point
from bench.report import load as report
from bench.report.summary import Load
from tests.unit.test_report import VARIANTS

BLOCKS, SLOWER = 8, 2.0


def cell(block: int, arm: str, factor: float, invalid: tuple[str, ...] = (), wrong: tuple[str, ...] = ()) -> LoadCell:
    chance = random.Random(f"{arm} {block}")
    figures = {"app_p50_us": None if invalid else 3000 * factor * chance.uniform(0.99, 1.01)}
    point = Point(0.5, 200.0, figures, invalid, 100.0)
    return LoadCell(block, arm, (point,), {"tls_per_s": 500 / factor * chance.uniform(0.99, 1.01), "udp_loss": 0.0,
                                           "held": 2000.0}, {}, wrong)


def record(**spoilt: dict[str, tuple[str, ...]]) -> LoadRecord:
    cells = [cell(block, arm, factor, **(spoilt.get("first", {}) if arm == "slow" and block == 0 else {}))
             for block in range(BLOCKS) for arm, factor in (("none", 1.0), (AA, 1.0), ("slow", SLOWER))]
    return LoadRecord(Knee(400.0, 500.0, ("sent late",), ()), cells, {"hosts": "cpu.stat"})


def loads(**spoilt: dict[str, tuple[str, ...]]) -> Loads:
    return Loads(record(**spoilt), ("none", "slow"))


def found(arm: str, **spoilt: dict[str, tuple[str, ...]]) -> Load:
    one = loads(**spoilt).arm(arm)
    assert one is not None
    return one


def test_an_arm_is_told_against_none_in_the_same_blocks() -> None:
    one = found("slow").points["50%"]["app_p50_us"]
    assert one.ratio == pytest.approx(SLOWER, rel=0.02) and one.n == BLOCKS and one.value == pytest.approx(6000, .02)
    assert one.low is not None and one.high is not None and one.low < SLOWER < one.high < 2.1
    assert found("slow").points[BESIDE]["tls_per_s"].ratio == pytest.approx(1 / SLOWER, rel=0.02)
    again = found(AA).points["50%"]["app_p50_us"]
    assert again.low is not None and again.high is not None and again.low <= 1 <= again.high
    assert found("none").points["50%"]["app_p50_us"].ratio == 1.0
    assert loads().arm("absent") is None


def test_a_share_that_is_zero_has_a_value_and_no_ratio() -> None:
    one = found("slow").points[BESIDE]["udp_loss"]
    assert one.value == 0.0 and one.ratio is None


def test_an_invalid_window_makes_no_figure_and_is_counted_with_its_reason() -> None:
    one = found("slow", first={"invalid": ("traffic: the generator sent late",)})
    assert (one.windows, one.invalid, one.wrong) == (BLOCKS, 1, 0)
    assert one.reasons == ("at 50% of the knee: traffic: the generator sent late",)
    assert one.points["50%"]["app_p50_us"].n == BLOCKS - 1


def test_a_visit_without_the_policy_in_force_counts_nowhere() -> None:
    one = found("slow", first={"wrong": ("before: a > b was OPEN",)})
    assert one.wrong == 1 and one.reasons == ("block 1: before: a > b was OPEN",)
    assert one.points["50%"]["app_p50_us"].n == one.points[BESIDE]["tls_per_s"].n == BLOCKS - 1
    assert load_figures.invalid(record(first={"wrong": ("x",)})) == []
    most = LoadRecord(cells=[cell(block, "slow", 1.0, wrong=("open",)) for block in range(3)])
    assert load_figures.invalid(most) == ["slow under load: 3 of 3 visits do not count, first: open"]


def test_the_report_tells_ratios_noise_and_what_does_not_count() -> None:
    summary = VARIANTS["comparison"]
    arms = {"none": summary.arms["none"].model_copy(update={"load": found("none")}),
            "slow": summary.arms["agent-nft"].model_copy(update={"load": found("slow", first={"invalid": ("late",)})})}
    shown = summary.model_copy(update={"arms": arms, "knee": load_figures.knee(record()), "aa": summary.aa.model_copy(
        update={"load": found(AA)})})
    rows = {label: [cell(name, arm) for name, arm in arms.items()] for label, cell, _note in report.rows(shown)}
    assert rows["at 50 % load: p50"][0].endswith(" ms") and "×2.0" in rows["at 50 % load: p50"][1]
    assert "[green]" not in rows["TLS handshakes/s"][1] and "×0.5" in rows["TLS handshakes/s"][1]
    assert rows["connections held"][0] == "≥ 2,000" and rows["UDP loss"] == ["0.00 %", "0.00 %"]
    assert rows["load windows INVALID"] == ["0 of 8", "1 of 8"]
    assert report.notes(shown) == ["the knee, with nothing enforced: 400 requests/s hold; 500/s do not: sent late",
                                   "slow under load: at 50% of the knee: late"]
    assert list(report.rows(summary)) == [] and report.notes(summary) == []


def test_a_difference_that_none_could_show_against_itself_is_none() -> None:
    one, again = found("slow").points["50%"]["app_p50_us"], found(AA).points["50%"]["app_p50_us"]
    assert "×" in report.ratio("app_p50_us", one, again)
    wide = again.model_copy(update={"low": 0.4, "high": 2.5})
    assert report.NO_DIFFERENCE in report.ratio("app_p50_us", one, wide)


def test_histograms_keep_every_latency_to_a_thousandth() -> None:
    values = np.random.default_rng(1).lognormal(5, 1, 20_000)
    kept = histogram.encoded([*values, math.nan])
    assert kept["n"] == 20_000 and kept["over"] == 0
    for q in (50.0, 90.0, 99.0, 99.9):
        nearest = np.sort(values)[round(q / 100 * len(values)) - 1]
        assert histogram.percentile(kept, q) == pytest.approx(nearest, rel=2e-3)
    assert histogram.percentile(histogram.encoded([]), 50) is None
    assert histogram.encoded([1e9])["over"] == 1
