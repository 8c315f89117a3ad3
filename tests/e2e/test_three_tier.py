"""three-tier, whole, on real packets: what the README promises of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from bench.analysis.bootstrap import MIN_BLOCKS
from bench.replaying import outcomes
from bench.report.summary import FIGURES, Summary, from_json
from bench.store import read
from tests.e2e.isolated import ROOT, needs_root

pytestmark = [needs_root, pytest.mark.e2e]
ARMS = yaml.safe_load((ROOT / "scenarios/three-tier.yaml").read_text())["arms"]
GOLDEN = {arm: gaps for arm, gaps in yaml.safe_load((ROOT / "tests/golden/three-tier-gaps.yaml").read_text()).items()
          if arm in ARMS}  # the others have tests of their own


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Summary, Path]:
    results = tmp_path_factory.mktemp("results")
    argv = [sys.executable, "-m", "bench.cli", "run", "three-tier", "--quick", "--json", "--results", str(results)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.stdout, done.stderr
    (saved,) = (results / "three-tier").iterdir()
    return done, from_json(done.stdout), saved


def test_it_ends_well_and_prints_the_summary_alone(ran, capsys) -> None:  # type: ignore[no-untyped-def]
    done, summary, saved = ran
    with capsys.disabled():
        print(f"\nthree-tier --quick took {summary.duration_s:.0f} s")
    assert "Traceback" not in done.stderr
    # 4: a machine too busy for the traffic generator says so; the verdicts do not depend on it
    assert done.returncode == 0 or (done.returncode == 4 and summary.invalid), done.stderr
    assert (saved / "summary.json").read_text() == done.stdout
    assert summary.quick and not summary.interrupted


@pytest.mark.parametrize("arm", sorted(GOLDEN))
def test_no_defect_and_the_gaps_derived_by_hand(ran, arm: str) -> None:  # type: ignore[no-untyped-def]
    found = ran[1].arms[arm]
    assert (found.defects, found.inconclusive, found.breaks) == (0, 0, 0), found.findings
    assert found.gaps == found.leaks == GOLDEN[arm]["total"]


@pytest.mark.parametrize("arm", sorted(GOLDEN))
def test_every_gap_has_its_reason_in_words(ran, arm: str) -> None:  # type: ignore[no-untyped-def]
    """By reason as many as were counted by hand, none under two reasons, and no reason that nobody expected."""
    wanted: Counter[str] = Counter()
    for one in GOLDEN[arm]["classes"]:
        wanted[one["why"]] += one["flows"]
    found: Counter[str] = Counter()
    for gap in ran[1].arms[arm].gap_classes:
        (why,) = (why for why in wanted if why in gap.reason)
        found[why] += gap.flows
        assert gap.leaks == gap.flows and gap.breaks == 0
    assert found == wanted


def test_the_reasons_say_what_is_behind_them(ran) -> None:  # type: ignore[no-untyped-def]
    agent, choke = ([g.reason for g in ran[1].arms[arm].gap_classes] for arm in ("agent-nft", "chokepoint"))
    for reasons in (agent, choke):
        assert any("widened" in r and "process" in r and "address" in r for r in reasons), reasons
    assert any("no agent on either end (cam)" in r for r in agent), agent
    assert "same host: the traffic never leaves it" in choke
    assert "same segment: the traffic crosses no enforcement point" in choke


def test_none_leaks_everything_that_the_policy_denies(ran) -> None:  # type: ignore[no-untyped-def]
    none = ran[1].arms["none"]
    assert none.leaks == none.denied == none.gaps > 0
    assert none.flows == none.denied + none.allowed
    assert none.defects == none.breaks == none.inconclusive == 0
    assert all(field.recall == 0 for field in none.visibility.values())


def test_the_attacker_reaches_the_goal_where_nothing_is_enforced(ran) -> None:  # type: ignore[no-untyped-def]
    attacks = {name: arm.attack for name, arm in ran[1].arms.items()}
    free = attacks["none"]
    assert free.reached and free.time_to_goal_s > 0 and free.taken[0] == "web-1" and "db" in free.taken
    for arm in ("agent-nft", "chokepoint"):
        assert 0 <= attacks[arm].blast_radius <= free.blast_radius <= 1


def test_costs_have_an_interval_and_a_control(ran, capsys) -> None:  # type: ignore[no-untyped-def]
    summary = ran[1]
    for arm in ("agent-nft", "chokepoint"):
        assert set(summary.arms[arm].cost) == set(FIGURES)
        assert summary.arms[arm].verified.n > 0
    assert set(summary.aa.cost) == set(FIGURES)
    crr, arms = summary.arms["agent-nft"].cost["crr_rate"], ("none", "agent-nft")
    # A block in which the policy was not in force, or an exchange failed, does not count, and says why it does not.
    spoilt = {cell["block"]: cell["invalid"] for cell in read(ran[2] / "cells.jsonl.gz")
              if cell["arm"] in arms and cell["invalid"]}
    restless = [said for arm in arms for note in summary.notes
                if (said := re.fullmatch(rf"{arm}: new connections of block ([\d, ]+) do not count: .*", note))]
    uncounted = spoilt.keys() | {int(block) for said in restless for block in said[1].split(", ")}
    if uncounted:
        with capsys.disabled():
            print(f"\nblocks that do not count: {spoilt} {restless}")
    assert crr.n == summary.blocks - len(uncounted)
    if crr.n >= MIN_BLOCKS:
        assert crr.low <= crr.ratio <= crr.high
    else:
        assert uncounted and crr.low is None and crr.high is None


def test_each_arm_sees_what_its_technique_can(ran) -> None:  # type: ignore[no-untyped-def]
    agent, choke = ran[1].arms["agent-nft"].visibility, ran[1].arms["chokepoint"].visibility
    assert agent["flow"].recall > 0.95 and agent["verdict"].recall > 0.95 and agent["user"].recall > 0.8
    assert 0 < agent["process"].recall < 1
    assert choke["process"].recall == choke["user"].recall == 0
    assert 0.5 < choke["flow"].recall < agent["flow"].recall


def test_raw_data_is_kept_and_readable(ran) -> None:  # type: ignore[no-untyped-def]
    saved, summary = ran[2], ran[1]
    raw = {path.name: list(read(path)) for path in saved.glob("*.jsonl.gz")}
    assert raw.keys() >= {"observations.jsonl.gz", "truth.jsonl.gz", "sightings.jsonl.gz", "cells.jsonl.gz",
                          "attack.jsonl.gz"}
    assert all(record["f"] == 1 for records in raw.values() for record in records)
    assert {p.name for p in saved.iterdir()} >= {"environment.json", "scenario.yaml", "scenario.json"}
    assert (saved / "scenario.yaml").read_text() == (ROOT / "scenarios/three-tier.yaml").read_text()
    for name, arm in summary.arms.items():
        assert sum(r["phase"] == "matrix" and r["arm"] == name for r in raw["observations.jsonl.gz"]) == arm.flows


def test_the_raw_data_holds_the_truth_of_every_attempt(ran) -> None:  # type: ignore[no-untyped-def]
    """Each probe is there as the client lived it and with the proof of arrival: the counts follow from them."""
    saved, summary = ran[2], ran[1]
    held, truths = outcomes(saved), list(read(saved / "truth.jsonl.gz"))
    for name, arm in summary.arms.items():
        through = sum(opened or arrived for opened, arrived in held[name].values())
        assert through == arm.leaks + arm.allowed - arm.breaks
        probes = [t for t in truths if t["arm"] == name and t["kind"] == "probe"]
        assert len(probes) == len(held[name]) == arm.flows
        assert sum(t["arrived"] or t["outcome"] == "OPEN" for t in probes) + arm.strained == through
        assert any(t["kind"] == "traffic" for t in truths if t["arm"] == name)
