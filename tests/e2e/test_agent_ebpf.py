"""agent-ebpf on real packets: three-tier whole, modes and changes of policy, the agent's death, nothing left behind."""

from __future__ import annotations

import pytest

from enforcers.agent.agent_ebpf import AgentEbpf
from lab import features
from tests.e2e.isolated import call, needs_isolation, needs_root

MISSING = features.missing(AgentEbpf().needs())
pytestmark = [needs_root, needs_isolation, pytest.mark.e2e,
              pytest.mark.skipif(bool(MISSING), reason=f"no eBPF agent here: {MISSING}")]
HELPER = "tests.e2e.ebpf_agent"


def test_three_tier_is_enforced_and_seen_without_exception() -> None:
    """Every flow as the policy says, and of every attempt by a managed host all five fields are told rightly."""
    found = call(HELPER, "whole_matrix", "three-tier")
    assert found["flows"] == 2200 and found["truths"] > 200
    assert found["wrong"] == []
    assert all(missed == [0, []] for missed in found["missed"].values()), found["missed"]
    assert found["lost"] == [{}] * 7
    assert found["left"], "the agent pins what it attaches"


def test_modes_and_a_policy_take_effect_at_the_next_connection() -> None:
    found = call(HELPER, "changed")
    assert found["enforce"] == ["OPEN", "DENIED_LOCALLY"] == found["again"]
    assert found["monitor"] == ["OPEN", "OPEN"] and found["would_deny"] > 0
    assert found["off"] == ["OPEN", "OPEN"]
    assert found["taken"][0] != "OPEN", "what db no longer allows"


def test_ten_thousand_entries_are_replaced_in_one_go() -> None:
    found = call(HELPER, "large", 10_000)
    assert found["entries"] >= 10_000
    assert found["outcomes"] == ["OPEN", "TIMED_OUT", "OPEN", "TIMED_OUT", "OPEN"]


def test_a_killed_agent_leaks_nothing_breaks_nothing_and_loses_no_count() -> None:
    found = call(HELPER, "killed", 4)
    assert found["leaks"] == [] and found["breaks"] == []
    assert found["took_over"]
    assert found["told"] >= found["denied_in_kernel"] > 0


def test_down_leaves_nothing_and_up_works_again() -> None:
    found = call(HELPER, "left_behind")
    assert found == {"left": [], "wrong": []}
