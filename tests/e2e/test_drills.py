"""`labctl failure` and `labctl churn`: what is planted comes out, in leak-seconds, outage-seconds and times."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.isolated import call, needs_isolation, needs_root

pytestmark = [pytest.mark.e2e, needs_root, needs_isolation]
HOLD_S, WINDOW_S = 1.5, 2.5  # tests.e2e.drills.DESIGN: the fault, and it with what is watched after the repair


@pytest.fixture(scope="module")
def failed() -> dict[str, Any]:
    found: dict[str, Any] = call("tests.e2e.drills", "failures")
    return found


def row(failed: dict[str, Any], arm: str, fault: str) -> dict[str, Any]:
    (found,) = [r for r in failed["report"]["rows"] if (r["arm"], r["fault"]) == (arm, fault)]
    return dict(found)


def test_rules_that_vanish_with_their_process_leak_until_it_is_started_again(failed: dict[str, Any]) -> None:
    found = row(failed, "fragile", "kill")
    judged = found["judged"]
    assert judged["invalid"] is None
    assert "killed 5 processes" in found["acted"][0]
    assert judged["word"].startswith("opens")
    assert judged["leak"]["hit"] == judged["leak"]["flows"] > 0
    leak = judged["leak"]["any"]
    assert leak["high"] >= HOLD_S - 0.2  # from the kill on: nothing else puts the rules back
    assert leak["low"] <= HOLD_S + judged["repair_s"] + 1
    assert judged["leak"]["phases"]["after"]["low"] == 0
    assert judged["outage"]["any"]["seconds"] < leak["seconds"] / 2


def test_rules_that_the_kernel_keeps_hold_until_the_agent_is_started_again(failed: dict[str, Any]) -> None:
    judged = row(failed, "agent-nft", "kill")["judged"]
    assert judged["invalid"] is None
    assert judged["leak"]["phases"]["fault"]["low"] == 0
    assert judged["leak"]["any"]["seconds"] < row(failed, "fragile", "kill")["judged"]["leak"]["any"]["seconds"]


def test_none_claims_nothing_so_all_that_is_denied_is_open_by_design(failed: dict[str, Any]) -> None:
    judged = row(failed, "none", "kill")["judged"]
    assert judged["leak"]["flows"] == 0
    assert judged["by_design"]["hit"] == judged["by_design"]["flows"] > 0
    assert judged["by_design"]["any"]["low"] >= 0.9 * judged["window_s"]


def test_who_cannot_be_told_goes_on_with_the_old_policy(failed: dict[str, Any]) -> None:
    judged = row(failed, "agent-nft", "partition")["judged"]
    assert judged["invalid"] is None
    for side in ("leak", "outage"):
        assert judged[side]["phases"]["fault"]["low"] > HOLD_S / 2
        assert judged[side]["phases"]["after"]["low"] == 0
    refused = row(failed, "fragile", "partition")
    assert refused["judged"] is None
    assert "cannot be updated while it stands" in refused["why"]


def test_the_timeline_is_kept_raw(failed: dict[str, Any]) -> None:
    assert failed["episodes"] == 5  # three arms twice, less the one that could not be done
    assert failed["fields"] == sorted(["f", "flow", "tick", "t", "outcome", "errno", "arrived", "took_us", "arm", "way",
                                       "fault"])
    assert failed["tries"] > 5 * 20 * failed["watched"]


def test_churn_times_newcomers_movers_and_heirs() -> None:
    found = call("tests.e2e.drills", "churned")
    assert "cannot be updated while it stands" in found["unsupported"]["fragile"]
    none, agent, chokepoint = (found["steps"][arm] for arm in ("none", "agent-nft", "chokepoint"))
    assert none["appear"]["protected"] is None and none["appear"]["leaked"] == none["appear"]["denied"]
    for arm in (agent, chokepoint):
        assert arm["depart"]["protected"] is not None  # forgotten, in the end
        assert arm["depart"]["leaked"] > 0  # and inherited until then
        assert arm["move"]["served"] is not None and arm["move"]["failed"] > 0
        assert arm["depart"]["protected"][1] > arm["depart"]["parts"]["compile_s"]
    assert agent["appear"]["points"] > 1 and chokepoint["appear"]["points"] == 1
    assert found["tries"] > 100


def test_a_host_joins_moves_and_leaves_without_a_trace() -> None:
    found = call("tests.e2e.drills", "joined")
    assert found["switch"] == []  # it sees as little of the switch as the hosts that were there before
    assert found["first"] == found["second"] == found["wanted"]
    assert set(found["moved"]) <= set(found["addresses"])
    assert found["left"] == found["neighbours"] == found["groups"] == []


def test_an_agent_knows_what_ran_on_a_host_before_it_had_a_policy_there() -> None:
    found = call("tests.e2e.drills", "late")
    if "skip" in found:
        pytest.skip(found["skip"])
    assert found == {"jobs": "OPEN", "(stranger)": "DENIED_LOCALLY"}
