"""The summary keeps its names and its documentation; the terminal says what the figures allow, and no more."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console

from bench.analysis import matrices, visibility
from bench.analysis.bootstrap import compare, log_ratios
from bench.report import summary as s
from bench.report.terminal import NO_DIFFERENCE, compare_text, cost_text, noise, quantity, show
from tests.unit.test_matrices import FLOW, OPEN, TOPOLOGY, seen

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "report"
UPDATE = bool(os.environ.get("UPDATE_GOLDEN"))


def figure(ratio: float, half: float, value: float = 100.0, n: int = 8) -> s.Figure:
    return s.Figure(ratio=ratio, low=ratio - half, high=ratio + half, n=n, value=value)


def arm(**more: Any) -> s.Arm:
    values: dict[str, Any] = {
        "flows": 2912, "leaks": 0, "breaks": 0, "gaps": 0, "defects": 0, "inconclusive": 0, "denied": 2880,
        "allowed": 32, "cost": {
            "crr_rate": figure(0.87, 0.02, 9900.0), "crr_p50_us": figure(1.22, 0.05, 93.5),
            "crr_p99_us": figure(1.1, 0.2, 240.0), "bulk_bps": figure(0.99, 0.04, 15.4e9),
            "cpu_per_conn_us": figure(1.16, 0.02, 101.0), "app_p99_us": figure(1.01, 0.03, 2310.0)},
        "visibility": {"flow": s.Recall(recall=0.98, n=5000), "process": s.Recall(recall=0.9996, n=5000),
                       "user": s.Recall(recall=0.0, n=5000), "bytes": s.Recall(recall=None, n=0),
                       "verdict": s.Recall(recall=1.0, n=5000)},
        "attack": s.Attack(reached=False, blast_radius=1 / 6, time_to_goal_s=None),
        "policy": s.Policy(native_rules=182, widened=0, narrowed=0, omitted=0),
        "deploy": s.Deploy(seconds=3.21, bytes_per_host=48213.0),
        "footprint": s.Footprint(host_rss_bytes=9.4e6, host_cpu_s=1.84, off_host_cpu_s=0.0), **more}
    return s.Arm(**values)


def baseline() -> s.Arm:
    cost = {name: figure(1.0, 0.0, one.value or 0.0) for name, one in arm().cost.items()}
    return arm(leaks=2880, gaps=2880, cost=cost, visibility={f: s.Recall(recall=0.0, n=5000) for f in s.FIELDS},
               attack=s.Attack(reached=True, blast_radius=1.0, time_to_goal_s=0.42), policy=None, deploy=None,
               footprint=None)


def summary(**more: Any) -> s.Summary:
    aa = s.AA(cost={name: figure(1.003, 0.01) for name in arm().cost})
    values: dict[str, Any] = {
        "labctl": "0.1.0", "scenario": "three-tier", "seed": 1, "started": "2026-01-02T03:04:05Z",
        "duration_s": 151.2, "quick": False, "blocks": 8, "aa": aa, "mde": dict.fromkeys(arm().cost, 0.021),
        "arms": {"none": baseline(), "agent-nft": arm(),
                 "chokepoint": arm(leaks=412, gaps=412, gap_classes=(s.GapClass(
                     reason="same segment: the traffic crosses no enforcement point", flows=412, leaks=412, breaks=0,
                     example="a > b"),), blind_spots=("did not see 38 of 38 flows between processes of one host",),
                     attack=s.Attack(reached=True, blast_radius=0.5, blast_radius_by_process=0.25,
                                     time_to_goal_s=1.9))}, **more}
    return s.Summary(**values)


VARIANTS: dict[str, s.Summary] = {
    "comparison": summary(),
    "quick-invalid": summary(quick=True, blocks=3, invalid=("traffic: the generator on user1 used 71 % of its core",)),
    "aa-differs": summary(aa=s.AA(cost={"crr_rate": figure(1.08, 0.01)}, differs=("crr_rate",))),
    "unsupported": summary(arms={"none": baseline(), "agent-ebpf": s.Arm(unsupported="the kernel has no BTF")}),
    "defects": summary(arms={"none": baseline(), "agent-nft": arm(
        defects=3, leaks=2, breaks=1, findings=("defect: a > b: expected deny, observed OPEN",))}, interrupted=True),
    "imported": summary(arms={"none": baseline(), "agent-nft": arm(
        unforeseen=s.Unforeseen(n=1203, broken=240, share=240 / 1203),
        convergence=s.Convergence(last_leak_s=0.012, last_break_s=0.034, interval_s=0.01))}),
}


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if UPDATE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{name} changed; if it should, run the tests with UPDATE_GOLDEN=1"


# --- terminal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_the_comparison_reads_as_agreed(name: str) -> None:
    text = compare_text(VARIANTS[name])
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    golden(f"{name}.txt", text)


def test_an_interval_that_spans_one_is_no_difference() -> None:
    assert NO_DIFFERENCE in cost_text("crr_rate", figure(0.97, 0.04))
    assert "0.87" in cost_text("crr_rate", figure(0.87, 0.02))


def test_an_effect_that_none_could_not_show_against_itself_is_no_difference() -> None:
    """Seen once: "×1.18 [1.05-1.33]" throughput for a firewall, in blocks whose A/A could show 35 % at best."""
    lucky = s.Figure(ratio=1.18, low=1.05, high=1.33, n=8, value=1e10)
    assert NO_DIFFERENCE in cost_text("bulk_bps", lucky, 0.24)
    assert "1.18" in cost_text("bulk_bps", lucky, 0.1)
    assert "0.69" in cost_text("crr_rate", s.Figure(ratio=0.69, low=0.59, high=0.82, n=8, value=1e4), 0.197)
    spread = s.AA(cost={"bulk_bps": s.Figure(ratio=1.0, low=0.8, high=1.25, n=8)})
    found = summary(aa=spread, arms={"none": baseline(), "choke": arm(cost={"bulk_bps": lucky})})
    assert noise(found, "bulk_bps") == pytest.approx(math.log(1.25))
    assert "1.18" not in compare_text(found)


def test_an_interval_near_one_is_not_rounded_into_it() -> None:
    text = cost_text("crr_rate", figure(0.99, 0.008))
    assert "0.998" in text and "1.00" not in text


def test_no_winner_is_named_when_the_instrument_differs_from_itself() -> None:
    text = compare_text(VARIANTS["aa-differs"])
    assert "names no winner" in text.replace("\n", " ") and "since A/A differs" in text.replace("\n", " ")
    assert "16 % more CPU" not in text


def test_no_cost_is_judged_in_an_invalid_run() -> None:
    text = compare_text(VARIANTS["quick-invalid"])
    assert "INVALID traffic: the generator on user1" in text and "quick" in text
    assert "measurement is invalid" in text.replace("\n", " ")


def test_zero_leaks_are_bounded() -> None:
    assert "0 of 2,880 (≤ 3/2,880)" in compare_text(VARIANTS["comparison"])


def test_colour_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    show(summary())  # standard output is captured: not a terminal
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(force_terminal=True, width=100, highlight=False)
    show(summary(), console)
    assert "\x1b[3" not in capsys.readouterr().out  # bold may stay: NO_COLOR is about colour
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm-256color")
    show(summary(), Console(force_terminal=True, color_system="standard", width=100, highlight=False))
    assert "\x1b[3" in capsys.readouterr().out


def test_names_with_brackets_are_printed_as_they_are() -> None:
    text = compare_text(summary(scenario="[red]x[/red]", arms={"none": baseline(), "[a]": s.Arm(unsupported="no [b]")}))
    assert "[red]x[/red]" in text and "[a]: not run on this machine: no [b]." in text


def test_quantities_have_units() -> None:
    assert quantity("bulk_bps", 15.4e9) == "15.40 Gb/s"
    assert quantity("app_p50_us", 2310) == "2.31 ms" and quantity("rr_p50_us", 16.24) == "16.2 µs"
    assert quantity("crr_rate", None) == "–"


# --- summary ----------------------------------------------------------------------------------


def test_the_names_that_others_build_on_are_there() -> None:
    document = json.loads(s.to_json(summary()))
    assert document["format"] == 1
    one = document["arms"]["agent-nft"]
    assert set(one) >= {"unsupported", "flows", "leaks", "breaks", "gaps", "defects", "inconclusive"}
    assert set(one["cost"]["crr_rate"]) >= {"ratio", "low", "high", "n"}
    assert set(one["visibility"]) == {"flow", "process", "user", "bytes", "verdict"}
    assert set(one["visibility"]["flow"]) == {"recall", "n"}
    assert set(one["attack"]) >= {"reached", "blast_radius", "time_to_goal_s"}
    assert set(one["policy"]) == {"native_rules", "widened", "narrowed", "omitted"}
    assert set(one["deploy"]) == {"seconds", "bytes_per_host"}
    assert set(one["footprint"]) == {"host_rss_bytes", "host_cpu_s", "off_host_cpu_s", "off_host_rss_bytes",
                                     "kernel_s"}
    assert document["aa"]["cost"]["crr_rate"]["n"] == 8
    assert s.FIGURES == ("crr_rate", "crr_p50_us", "crr_p99_us", "rr_p50_us", "rr_p99_us", "bulk_bps",
                         "cpu_per_conn_us", "app_p50_us", "app_p99_us")
    assert one["unsupported"] is None


def test_a_summary_survives_being_written_and_read() -> None:
    for one in VARIANTS.values():
        assert s.from_json(s.to_json(one)) == one


def test_an_unknown_figure_or_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="crr_speed"):
        s.Arm(cost={"crr_speed": figure(1, 0)})  # type: ignore[dict-item]
    with pytest.raises(ValidationError):
        s.from_json(s.to_json(summary()).replace('"quick"', '"quik"'))


def test_it_is_filled_from_the_analysis() -> None:
    found = matrices.matrix([FLOW], intended=[True], expected=[True], covered=[True],
                            observed={FLOW: seen(FLOW, OPEN)}, baseline={FLOW: seen(FLOW, OPEN)}, topology=TOPOLOGY)
    told = s.recalls(visibility.visibility([], [], TOPOLOGY))
    made = s.Arm(**s.verdicts(found), visibility=told, gap_classes=s.gap_classes(()),
                 cost={"crr_rate": effect([0.9, 0.91, None], [1.0, 1.0, 1.0])})
    assert (made.flows, made.allowed, made.kinds["allowed"].bound) == (1, 1, 1.0)
    assert made.cost["crr_rate"].n == 2 and made.visibility["flow"].recall is None
    assert made.cost["crr_rate"].value == pytest.approx(0.905)
    same = s.aa({"crr_rate": effect([1.2, 2.4, 3.6], [1.0, 2.0, 3.0]), "rr_p50_us": effect([1, 2, 3], [1, 3, 2])})
    assert same.differs == ("crr_rate",) and same.cost["crr_rate"].ratio == pytest.approx(1.2)


def effect(arm: Sequence[float | None], base: Sequence[float | None]) -> s.Figure:
    return s.figure(compare({"arm": log_ratios(arm, base)})["arm"], arm)


def test_a_difference_is_named_by_the_interval_of_the_whole_family() -> None:
    """Of an arm alone 0.95–0.99 excludes 1; of five arms together, 0.93–1.01 does not."""
    one = s.Figure(ratio=0.97, low=0.95, high=0.99, n=28, family_low=0.93, family_high=1.01)
    assert NO_DIFFERENCE in cost_text("crr_rate", one)
    assert "0.93–0.99" in cost_text("crr_rate", one.model_copy(update={"family_high": 0.99}))


def test_a_run_until_its_intervals_are_narrow_says_how_it_ended() -> None:
    until = s.Until(target=0.02, reached=True, widest=0.018, arm="agent-nft", needed=24, budget_s=900)
    assert "within 2 %: reached" in compare_text(summary(until=until))
    missed = compare_text(summary(until=until.model_copy(update={"reached": False, "widest": 0.031, "needed": 64})))
    assert "not reached in 900 s, agent-nft is within 3.1 %; it takes about 64 blocks" in missed.replace("\n", " ")


def test_every_field_is_described_and_the_readme_and_schema_are_made_of_the_descriptions() -> None:
    assert all(text for _, text in s.fields())
    assert {"arms.<arm>.cost.<figure>.ratio", "aa.cost.<figure>.n", "arms.<arm>.attack.reached",
            "arms.<arm>.gap_classes[].reason"} <= {place for place, _ in s.fields()}
    readme, schema = ROOT / "results" / "README.md", ROOT / "results" / "summary.schema.json"
    head, rest = readme.read_text().split("fields_markdown() -->\n")
    tail = rest[rest.index("<!-- end of fields"):]
    wanted = f"{head}fields_markdown() -->\n\n{s.fields_markdown()}\n{tail}"
    if UPDATE:
        readme.write_text(wanted)
        schema.write_text(s.schema_text())
    assert readme.read_text() == wanted
    assert schema.read_text() == s.schema_text()
