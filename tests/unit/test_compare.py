"""Results side by side: only ratios, differences only beyond the intervals, and what differs around them is named."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench.report import compare as c
from bench.report import summary as s
from bench.report.compare_text import differences, show
from bench.report.saved import Saved, SavedError, entries, newest, read
from tests.unit.test_report import arm, figure, summary

DATA = Path(__file__).parents[1] / "data" / "results"
RECORDED = sorted((DATA / "three-tier").iterdir(), reverse=True)


def saved(name: str, digest: str = "same", **more: object) -> Saved:
    return Saved(Path(name), summary(**more), digest)


def flagged(*results: Saved) -> list[str]:
    return list(differences(c.compare(results)))


def costing(ratio: float, half: float = 0.05) -> dict[str, s.Arm]:
    base = summary().arms["none"]
    return {"none": base, "agent-nft": arm(cost={"crr_rate": figure(ratio, half)})}


def test_the_same_result_twice_differs_in_nothing() -> None:
    found = c.compare([saved("a"), saved("b")])
    assert not list(differences(found)) and not found.warnings and not found.environment and found.same_machine


def test_costs_differ_only_where_intervals_do_not_overlap() -> None:
    first = saved("a", arms=costing(0.80))
    assert not flagged(first, saved("b", arms=costing(0.89)))  # 0.75–0.85 and 0.84–0.94 overlap
    assert flagged(first, saved("b", arms=costing(0.95))) == [
        "agent-nft: connections/s (CRR): ×0.80 (0.75–0.85) in 1, ×0.95 (0.90–1.00) in 2"]


def test_without_an_interval_or_a_valid_measurement_nothing_is_said_of_costs() -> None:
    bare = {"none": summary().arms["none"],
            "agent-nft": arm(cost={"crr_rate": s.Figure(ratio=0.1, low=None, high=None, n=2, value=1.0)})}
    assert not flagged(saved("a", arms=costing(0.8)), saved("b", arms=bare))
    far = costing(0.1, 0.01)
    for more in ({"invalid": ("the generator was late",)},
                 {"aa": s.AA(cost={"crr_rate": figure(1.1, 0.01)}, differs=("crr_rate",))}):
        found = c.compare([saved("a", arms=costing(0.8)), saved("b", arms=far, **more)])
        assert not list(differences(found)) and any("2" in line for line in found.warnings)


def test_costs_of_different_backends_are_not_compared_verdicts_are() -> None:
    other = saved("b", arms=costing(0.1, 0.01), environment={"backend": "docker"})
    found = c.compare([saved("a", arms=costing(0.8)), other])
    assert not list(differences(found)) and not found.same_machine
    assert any("costs are compared within one kind only" in line for line in found.warnings)
    same = c.compare([saved("a", arms=costing(0.8), environment={"backend": "docker"}), other])
    assert list(differences(same)) and not same.warnings


def test_absolute_times_are_never_compared() -> None:
    slow = {"none": summary().arms["none"], "agent-nft": arm(cost={"crr_rate": figure(0.8, 0.05, value=1.0)})}
    found = c.compare([saved("a", arms=costing(0.8)), saved("b", arms=slow)])
    assert not list(differences(found))
    assert not any(row.section == "cost" for row in found.arms["none"])


def test_counts_of_a_whole_matrix_differ_by_one_flow_those_of_a_sample_by_their_interval() -> None:
    def with_leaks(leaks: int, **more: object) -> Saved:
        return saved("x", arms={"none": summary().arms["none"], "agent-nft": arm(leaks=leaks)}, **more)

    assert flagged(with_leaks(40), with_leaks(41)) == ["agent-nft: leaks: 40 of 2,880 in 1, 41 of 2,880 in 2"]
    sample = {"notes": ("the matrix is a seeded, stratified sample: 2880 of 900000 flows",)}
    assert not flagged(with_leaks(40, **sample), with_leaks(41, **sample))
    assert len(flagged(with_leaks(40, **sample), with_leaks(140, **sample))) == 1


def test_an_attack_is_one_trial_and_never_judged() -> None:
    reached = arm(attack=s.Attack(reached=True, blast_radius=1.0, time_to_goal_s=1.0))
    base = summary().arms["none"]
    found = c.compare([saved("a"), saved("b", arms={"none": base, "agent-nft": reached})])
    assert not list(differences(found))
    row = next(r for r in found.arms["agent-nft"] if r.name == "blast radius")
    assert [v.value for v in row.values if v] == [pytest.approx(1 / 6), 1.0] and row.differs[1] is None


def test_what_differs_around_the_figures_is_named() -> None:
    here = {"kernel": "6.1", "cpu_model": "A", "packages": {"numpy": "2.1", "locust": "2"}, "load_average_before": [1]}
    there = here | {"kernel": "6.12", "packages": {"numpy": "2.4", "locust": "2"}, "load_average_before": [9]}
    found = c.compare([saved("a", environment=here), saved("b", "other", environment=there, seed=7, quick=True)])
    assert found.environment == ("kernel: 6.1 in 1, 6.12 in 2", "numpy: 2.1 in 1, 2.4 in 2")
    assert not found.same_machine
    assert found.warnings == ("the scenario file changed between 1 and 2", "the seed differs: 1 in 1, 7 in 2",
                              "2 is quick: fewer blocks, wider intervals")
    other = c.compare([saved("a"), saved("b", scenario="shop")])
    assert other.warnings == ("1 and 2 are of different scenarios: three-tier, shop",)


def test_an_arm_that_only_one_result_has_is_shown_and_not_judged() -> None:
    found = c.compare([saved("a"), saved("b", arms={"none": summary().arms["none"]})])
    assert all(row.differs[1] is None for row in found.arms["chokepoint"])


def test_wilson_is_what_the_books_say() -> None:
    assert c.wilson(0.1, 100) == pytest.approx((0.0552, 0.1744), abs=5e-4)  # Newcombe 1998, table I: 10 of 100
    assert c.wilson(0.0, 10)[0] == pytest.approx(0.0) and c.wilson(1.0, 10)[1] == pytest.approx(1.0)


def test_recorded_results_read_side_by_side() -> None:
    found = c.compare([read(path) for path in RECORDED])
    console = Console(width=100, record=True, no_color=True, file=io.StringIO())
    show(found, console)
    shown = console.export_text()
    assert "agent-nft" in shown and "40 of 2,164" in shown and "the seed differs" in shown
    assert max(map(len, shown.splitlines())) <= 160
    assert json.loads(json.dumps(found.as_data()))["arms"]["chokepoint"]


def test_results_are_listed_newest_first_the_broken_too(tmp_path: Path) -> None:
    whole = (RECORDED[0] / "summary.json").read_text()
    for stamp, content in (("2026-01-01T000000Z", None), ("2026-01-02T000000Z", "{"),
                           ("2026-01-03T000000Z", '{"a": 1}'), ("2026-01-04T000000Z", whole)):
        directory = tmp_path / "three-tier" / stamp
        directory.mkdir(parents=True)
        if content is not None:
            (directory / "summary.json").write_text(content)
    found = entries(tmp_path)
    assert [entry.path.name[8:10] for entry in found] == ["04", "03", "02", "01"]
    assert found[0].saved and not any(entry.saved for entry in found[1:])
    assert "not of format 1" in found[1].problem and "no summary.json" in found[3].problem
    assert newest(tmp_path, "three-tier").path.name == "2026-01-04T000000Z"
    with pytest.raises(SavedError, match="neither such a path nor a result"):
        newest(tmp_path, "shop")
