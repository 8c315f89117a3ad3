"""What is planted in the fake network must come out of the whole experiment as what it is, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import assemble
from bench.experiment import Collected, Options, execute
from bench.instruments.yardstick import Yardstick
from bench.report.summary import Summary
from bench.selection import select
from bench.store import ResultStore
from enforcers.none import NoEnforcer
from lab.backends.fake import Lies, up
from lab.scenario import load
from tests.mirror import Mirror

THREE_TIER = Path(__file__).parents[2] / "scenarios" / "three-tier.yaml"


@pytest.fixture(autouse=True)
def one_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake network goes at one speed, whatever this machine does."""
    monkeypatch.setattr(Yardstick, "read", lambda _self: 50.0)


def summed(tmp_path: Path, lies: dict[str, Lies], blocks: int = 8) -> Summary:
    scenario = replace(load(THREE_TIER), traffic=None)
    enforcers = {"none": NoEnforcer(), "mirror": Mirror()}
    collected = Collected(scenario, Options(blocks=blocks), select(scenario), enforcers)
    with up(scenario.topology, lies) as testbed, ResultStore.create(tmp_path, "lies") as store:
        execute(collected, testbed, None, store, lambda _text: None)
        return assemble.summary(collected)


def test_honest_network_has_no_findings(tmp_path: Path) -> None:
    found = summed(tmp_path, {})
    arm = found.arms["mirror"]
    assert (arm.leaks, arm.breaks, arm.gaps, arm.defects, arm.inconclusive) == (0, 0, 0, 0, 0)
    assert arm.visibility["flow"].recall == 1
    assert found.arms["none"].leaks == found.arms["none"].gaps > 0
    assert found.arms["none"].defects == 0
    assert assemble.exit_status(found) == 0


def test_leaking_port_is_a_leak_and_a_defect(tmp_path: Path) -> None:
    found = summed(tmp_path, {"mirror": Lies(leak_port=6379)})
    arm = found.arms["mirror"]
    assert arm.leaks == arm.defects > 0
    assert arm.breaks == arm.gaps == 0
    assert assemble.exit_status(found) == 1


def test_dropped_rule_breaks_what_it_allowed(tmp_path: Path) -> None:
    arm = summed(tmp_path, {"mirror": Lies(drop_rule="api reads store")}).arms["mirror"]
    assert arm.breaks == arm.defects > 0
    assert arm.leaks == 0


def test_one_way_leak_is_a_leak_although_nothing_came_back(tmp_path: Path) -> None:
    arm = summed(tmp_path, {"mirror": Lies(one_way=6379)}).arms["mirror"]
    assert arm.leaks == arm.defects > 0
    assert arm.breaks == 0


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_lost_telemetry_is_lost_recall(tmp_path: Path, share: float) -> None:
    arm = summed(tmp_path, {"mirror": Lies(lose_telemetry=share)}).arms["mirror"]
    recall = arm.visibility["flow"].recall
    assert recall is not None
    assert recall == pytest.approx(1 - share, abs=0.04)
    assert arm.defects == 0


def test_dead_server_is_inconclusive_never_blocked(tmp_path: Path) -> None:
    found = summed(tmp_path, {"": Lies(dead=frozenset({("db", "store")}))})
    arm = found.arms["mirror"]
    assert arm.inconclusive > 0
    assert arm.breaks == arm.defects == 0


def test_server_that_dies_under_one_arm_only_is_a_break(tmp_path: Path) -> None:
    arm = summed(tmp_path, {"mirror": Lies(dead=frozenset({("db", "store")}))}).arms["mirror"]
    assert arm.breaks == arm.defects > 0


def test_slow_arm_comes_out_as_slow_as_it_is(tmp_path: Path) -> None:
    found = summed(tmp_path, {"mirror": Lies(slow_us=70.0)})
    p50 = found.arms["mirror"].cost["crr_p50_us"]
    assert p50.low is not None and p50.high is not None
    assert p50.low <= 140.6 / 70.6 * 1.02 and p50.high >= 140.6 / 70.6 * 0.98
    assert p50.low > 1.5
    honest = found.aa.cost["crr_p50_us"]
    assert honest.low is not None and honest.high is not None
    assert honest.low <= 1 <= honest.high or abs((honest.ratio or 0) - 1) < 0.01
