"""Small scenarios about where enforcement stands, on real packets, every arm: no defect, gaps as derived by hand."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from functools import cache
from typing import Any

import pytest
import yaml

from bench.report.summary import Summary, from_json
from tests.e2e.isolated import ROOT, needs_isolation, needs_root

pytestmark = [needs_root, needs_isolation, pytest.mark.e2e]
NAMES = ("overlapping-tenants", "same-host", "same-segment", "spoofing", "unmanaged-devices")
GOLDEN: dict[str, dict[str, Any]] = {
    name: yaml.safe_load((ROOT / f"tests/golden/{name}-gaps.yaml").read_text()) for name in NAMES}


THREE_TIER = {name: gaps for name, gaps in yaml.safe_load(
    (ROOT / "tests/golden/three-tier-gaps.yaml").read_text()).items()
    if name in ("hairpin", "virtual-switch-nft", "unified", "unified-nft")}  # the others have tests of their own


@cache
def ran(scenario: str, results: str, arms: str = "") -> Summary:
    """The matrix and the attack of every arm; no costs."""
    argv = [sys.executable, "-m", "bench.cli", "run", scenario, "--quick", "--blocks", "0", "--json",
            "--results", results, *(["--arms", arms] if arms else [])]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.stdout, done.stderr
    assert "Traceback" not in done.stderr
    return from_json(done.stdout)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("scenario", sorted(GOLDEN))
def test_no_defect_and_the_gaps_derived_by_hand(scenario: str, results: str) -> None:
    summary = ran(scenario, results)
    assert set(summary.arms) == set(GOLDEN[scenario])
    check(summary, GOLDEN[scenario])


def test_three_tier_is_as_derived_by_hand_too(results: str) -> None:
    check(ran("three-tier", results, ",".join(THREE_TIER)), THREE_TIER)


def check(summary: Summary, golden: dict[str, Any]) -> None:
    for name, arm in summary.arms.items():
        if arm.unsupported or name not in golden:
            continue
        assert (arm.defects, arm.inconclusive, arm.breaks) == (0, 0, 0), (name, arm.findings)
        wanted: Counter[str] = Counter()
        for one in golden[name]["classes"]:
            wanted[one["why"]] += one["flows"]
        found = {why: sum(gap.flows for gap in arm.gap_classes if why in gap.reason) for why in wanted}
        assert (arm.leaks, found) == (golden[name]["total"], dict(wanted)), name


def test_some_arm_other_than_none_ran_in_each(results: str) -> None:
    for scenario in GOLDEN:
        names = [name for name, arm in ran(scenario, results).arms.items() if not arm.unsupported]
        assert len(names) > 3, names


def test_within_a_segment_what_is_allowed_takes_the_detour(results: str) -> None:
    """The arm saw all of it at the router, which without it sees nothing of it."""
    arms = ran("same-segment", results).arms
    seen = {name: arms[name].visibility["flow"].recall for name in ("chokepoint", "hairpin")}
    assert seen["hairpin"] > seen["chokepoint"], seen
    assert arms["hairpin"].attack.taken == arms["virtual-switch-nft"].attack.taken


# By hand, of `spoofing`: 18 datagrams, as each is sent over both families. To console: by rogue, from its own link
# address and the sensor's, straight and by the router (8), and by collector (2). To collector: by rogue and by console,
# from either address (8).
SPOOFED = {
    "none": 18, "agent-nft": 18,  # the addresses are right
    "agent-ebpf": 12,  # its hosts send no raw frames: neither console nor collector
    "chokepoint": 12,  # of what it is asked to route to console (6), nobody may send anything across
    "hairpin": 14,  # the ports let nothing go straight (4)
    "virtual-switch": 0, "virtual-switch-nft": 0, "unified": 0, "unified-nft": 0,
}


def test_who_lets_a_datagram_in_anothers_name_arrive(results: str) -> None:
    found = {name: arm.spoofing for name, arm in ran("spoofing", results).arms.items() if not arm.unsupported}
    assert {name: (one.n, one.arrived, one.defects) for name, one in found.items()} == {
        name: (18, SPOOFED[name], 0) for name in found}
    assert ran("same-segment", results).arms["none"].spoofing is None, "no datagram is allowed there"
