"""The virtual switch's program on real packets: all cases pass, and each check that is left out makes some fail."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import yaml

from bench.report.summary import Summary, from_json
from lab import features
from lab.model import Feature
from tests.e2e.isolated import ROOT, call, needs_root

CASES = "tests.e2e.switch_cases"
LACKS = features.missing(tuple(Feature(name, "the program") for name in ("tc-bpf", "clang", "libbpf")))
pytestmark = [needs_root, pytest.mark.e2e, pytest.mark.skipif(bool(LACKS), reason=str(LACKS))]

# check left out -> the cases that have to fail, and no others
NEEDED = {
    "WINDOWS": {"segments_outside_of_the_window_are_dropped", "windows_are_scaled", "a_blind_reset_is_dropped"},
    "STATE": {"nothing_begins_in_the_middle", "silence_ends_a_flow"},
    "EXACT_RESET": {"a_reset_that_is_merely_near_ends_nothing"},
    "SIMULTANEOUS_OPEN": {"both_may_open_at_once"},
    "FLAG": {"flags_that_make_no_sense_are_dropped"},
    "RELATED": {"errors_about_nothing_known_are_dropped"},
    "FRAGMENTS": {"fragments_follow_their_first"},
    "OVERLAP": {"fragments_that_overlap_are_dropped_and_spoil_the_rest"},
    "ARP": {"nobody_speaks_arp_for_another"},
    "ND": {"nobody_advertises_another"},
    "ADDRESS": {"nobody_has_anothers_address"},
    "MAC": {"nobody_has_anothers_mac"},
    "REJUDGE": {"a_change_cuts_what_stands_with_a_reset"},
}


def failed(*flags: str) -> dict[str, Any]:
    return dict(call(CASES, "run", list(flags), timeout_s=60))


def test_what_a_stateful_firewall_does() -> None:
    assert failed() == {}


def test_two_tenants_may_have_the_same_addresses() -> None:
    assert call(CASES, "tenants", None, timeout_s=60)


@pytest.mark.parametrize("check", sorted(NEEDED))
def test_each_check_is_needed(check: str) -> None:
    found = failed(f"-DWITHOUT_{check}")
    assert NEEDED[check] <= set(found), found


def full(*flags: str) -> dict[str, Any]:
    return dict(call("tests.e2e.switch_room", "run", list(flags), timeout_s=180))


def test_a_full_table_forgets_what_is_least_missed_and_tells_of_it() -> None:
    found = full()
    connections = 65_535 - 1  # from every port, but for the one whose connection stands
    assert found["flood"] == {"passed": connections + 65_535, "held": 65_536, "stands": True, "forgotten": True,
                              "fresh": True, "told": connections + 65_535 + 2 - 65_536}
    assert found["of_connections"] == {"refused": True, "counted": 1, "goes_on": True, "begins": True}
    assert found["of_the_closed"] == {"refused": 512, "kept": 256, "the_newest": True, "told": 512}
    assert found["handed_over"] == {"tcp": 50, "udp": 1}, "each once, whenever the daemon was killed"
    assert found["abandoned"] == {"before": ["bpf", "in-force.1", "spool.1"], "after": ["bpf"]}


def test_it_would_forget_connections_if_it_did_not_look() -> None:
    found = full("-DWITHOUT_STANDING")
    assert not found["flood"]["stands"] and not found["of_connections"]["refused"]


# --- in a whole lab ------------------------------------------------------------------------------------


def test_hosts_see_nothing_of_it_and_a_large_change_is_there_at_once() -> None:
    found = call("tests.e2e.switch_lab", "unseen", None, timeout_s=120)
    assert (found["during"], found["after"], found["left"]) == ([], [], False)
    assert found["met"] == ["TIMED_OUT", "OPEN"] * 5
    assert found["entries"] > 10_000
    print(f"{found['entries']} entries: {statistics.median(found['seconds']) * 1e3:.1f} ms")


def restarted(rounds: int, letting_go: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = call("tests.e2e.switch_lab", "restarted", {"rounds": rounds, "letting_go": letting_go},
                                 timeout_s=280)
    assert found["opened"] > 100 * rounds and found["stood"] > 1000
    assert (found["failed"], found["cut"], found["leaked"]) == (0, 0, 0)
    return found


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_and_started_again_it_opens_nothing_cuts_nothing_and_forgets_nothing(rounds: int) -> None:
    """Connections go on, others begin 300 times a second, and each is told of with its rule."""
    found = restarted(rounds)
    assert found["lost"] == 0, "an opening lost a packet"
    assert found["told"] == found["opened"] and found["rules"] == ["users to shop"]
    assert found["left"] == ["lock"], "after the last port is let go, no file of it is left"


@pytest.mark.slow
def test_a_restart_that_lets_go_of_a_port_for_a_moment_is_noticed() -> None:
    assert restarted(4, letting_go=True)["lost"] > 0


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    results = tmp_path_factory.mktemp("results")
    argv = [sys.executable, "-m", "bench.cli", "run", "three-tier", "--quick", "--blocks", "1", "--arms",
            "none,virtual-switch", "--json", "--results", str(results)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout, done.stderr
    return from_json(done.stdout)


def test_no_defect_and_the_gaps_derived_by_hand(summary: Summary) -> None:
    golden = yaml.safe_load((ROOT / "tests/golden/three-tier-gaps.yaml").read_text())["virtual-switch"]
    found = summary.arms["virtual-switch"]
    assert (found.defects, found.inconclusive, found.breaks) == (0, 0, 0), found.findings
    assert found.gaps == found.leaks == golden["total"]
    wanted: Counter[str] = Counter()
    for one in golden["classes"]:
        wanted[one["why"]] += one["flows"]
    reasons = {why: sum(gap.flows for gap in found.gap_classes if why in gap.reason) for why in wanted}
    assert reasons == wanted


def test_it_sees_what_leaves_a_host(summary: Summary) -> None:
    seen = summary.arms["virtual-switch"].visibility
    assert seen["flow"].recall > 0.8 and seen["verdict"].recall > 0.8
    assert seen["process"].recall == seen["user"].recall == 0
