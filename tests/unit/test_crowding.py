"""Where an arm no longer bears more pairs, on made-up windows; and which pairs a scenario has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import crowding
from bench.analysis.crowding import Point, curve
from bench.report import crowding as report
from lab.scenario import load

ROOT = Path(__file__).parents[2]


def windows(arm: str, capacity: float, rounds: int = 3) -> list[Point]:
    """A server of so many connections a second, offered 1,000 by each pair: above, they wait for half of the window."""
    found = []
    for number in range(rounds):
        for pairs in (1, 2, 4, 8, 12):
            offered = 1000.0 * pairs
            late = max(0.0, 1 - capacity / offered) * 500_000
            found.append(Point(arm, number, pairs, offered, min(offered, capacity * (1 + number / 100)), 0,
                               150 + late / 2, 400 + late))
    return found


@pytest.mark.parametrize(("capacity", "knee"), [(500, 0), (1000, 1), (5000, 4), (8100, 8), (50_000, 12)])
def test_the_knee_is_the_last_number_that_is_borne(capacity: float, knee: int) -> None:
    found = curve("a", windows("a", capacity) + windows("b", 1e9))
    assert (found.knee, found.bends) == (knee, knee < 12)
    assert found.capacity == pytest.approx(min(capacity, 12_000), rel=0.02)


def test_one_that_is_in_time_beyond_one_that_is_not_makes_no_knee() -> None:
    points = [replace(p, achieved=900.0) if p.pairs == 2 else p for p in windows("a", 1e9)]
    assert curve("a", points).knee == 1


def test_slow_is_not_borne_even_where_all_is_achieved() -> None:
    points = [replace(p, p99_us=40_000.0) if p.pairs >= 8 else p for p in windows("a", 1e9)]
    assert curve("a", points).knee == 4


def test_a_stray_round_is_outvoted() -> None:
    points = [replace(p, achieved=10.0) if (p.pairs, p.round) == (4, 1) else p for p in windows("a", 1e9)]
    found = curve("a", points)
    assert not found.bends and found.steps[2].achieved_low == 10.0


def test_no_window_is_an_error() -> None:
    with pytest.raises(ValueError, match="no window of b"):
        curve("b", windows("a", 1))


def test_the_figure_and_the_words_say_where_it_bends() -> None:
    curves = [curve("free", windows("free", 1e9)), curve("box", windows("box", 5000))]
    svg = report.drawn(curves)
    assert svg == report.drawn(curves) and "<svg" in svg and "box" in svg
    said = report.sentences(curves, {"other": "no BPF"}, ["box"])
    assert said[0] == "free: bears all 12 pairs that were tried: no knee was reached."
    assert said[1].startswith("box: bears 4 pairs; of more it achieves at most 5,0")
    assert "other: not run on this machine: no BPF." in said and "do not use its figures" in said[-1]


def test_pairs_share_no_host_and_stay_in_their_segment() -> None:
    scenario = load(ROOT / "scenarios" / "hairpin-bottleneck.yaml")
    pairs = crowding.pairs_of(scenario)
    hosts = [name for flow in pairs for name in (flow.source, flow.target)]
    assert len(pairs) == 12 and len(set(hosts)) == 24
    assert crowding.steps_of(12)[0] == 1 and crowding.steps_of(12)[-1] == 12 and len(crowding.steps_of(12)) == 8
    assert crowding.steps_of(2) == (1, 2)
    with pytest.raises(crowding.CrowdError, match="fewer than two pairs"):
        crowding.pairs_of(load(ROOT / "scenarios" / "three-tier.yaml"))
