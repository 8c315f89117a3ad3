"""agent-ebpf on real packets: three-tier whole, modes and changes of policy, the agent's death, nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from enforcers.agent.agent_ebpf import AgentEbpf
from lab import features
from tests.e2e.isolated import ROOT, call, needs_isolation, needs_root

MISSING = features.missing(AgentEbpf().needs())
pytestmark = [needs_root, needs_isolation, pytest.mark.e2e,
              pytest.mark.skipif(bool(MISSING), reason=f"no eBPF agent here: {MISSING}")]
HELPER = "tests.e2e.ebpf_agent"


def test_three_tier_is_enforced_and_seen_without_exception() -> None:
    """Every flow as the policy says, and of every attempt by a managed host all five fields are told rightly."""
    found = call(HELPER, "whole_matrix", "three-tier")
    assert found["flows"] == 2200 and found["truths"] >= 36
    assert found["wrong"] == []
    assert all(missed == [0, []] for missed in found["missed"].values()), found["missed"]
    assert found["lost"] == [{}] * 7
    assert found["left"], "the agent pins what it attaches"


def test_modes_and_a_policy_take_effect_at_the_next_connection() -> None:
    found = call(HELPER, "changed")
    assert found["enforce"] == ["OPEN", "DENIED_LOCALLY"] == found["again"]
    assert found["monitor"] == ["OPEN", "OPEN"] and found["would_deny"] > 0
    assert found["selected"] == found["enforce"] and found["said"] == ["6379/tcp"], "one service, of a monitored host"
    assert found["another"] == ["OPEN", "OPEN"], "it is another service that is enforced now"
    assert found["off"] == ["OPEN", "OPEN"]
    assert found["taken"][0] != "OPEN", "what db no longer allows"


@pytest.mark.parametrize("wait_s", [0, 2.2])
def test_ten_thousand_entries_are_replaced_in_one_go(wait_s: float) -> None:
    """Also before the agent had time to make ready for it, which takes longer."""
    found = call(HELPER, "large", [10_000, wait_s])
    print(f"\n{found['entries']} entries in force after {found['ms']} ms; the command: {found['command_ms']} ms")
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


def labctl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench.cli", *words], cwd=ROOT, capture_output=True, text=True,
                          timeout=500, check=False)


def test_labctl_agent_tells_what_is_loaded_and_why() -> None:
    up = labctl("up", "three-tier", "--arm", "agent-ebpf", "--json")
    assert up.returncode == 0, up.stderr
    lab = json.loads(up.stdout)["id"]
    try:
        status = json.loads(labctl("agent", "status", "--json", "--lab", lab).stdout)["hosts"]
        assert set(status) == {"user-1", "user-2", "web-1", "web-2", "api-1", "api-2", "db"}
        assert all(one["mode"] == "enforce" and "connect4" in one["agent"]["programs"] for one in status.values())
        assert all(one["interfaces"] == ["eth0 in", "eth0 out"] for one in status.values())
        assert labctl("probe", "web-1/frontend", "db", "6379/tcp", "--expect", "deny", "--lab", lab).returncode == 0
        told = labctl("agent", "explain", "web-1/frontend", "db", "6379/tcp", "--lab", lab).stdout
        assert "deny, by the default" in told and "/opt/shop/frontend (www)" in told
        allowed = json.loads(labctl("agent", "explain", "web-1/frontend", "api-1", "8080/tcp", "--json",
                                    "--lab", lab).stdout)
        assert (allowed["verdict"], allowed["because"]) == ("allow", "shop calls api")
        assert "shop calls api" in labctl("agent", "policy", "--host", "web-1", "--lab", lab).stdout
        assert "/opt/shop/frontend" in labctl("agent", "flows", "--host", "web-1", "--lab", lab).stdout
        camera = labctl("agent", "status", "--host", "cam", "--lab", lab)
        assert camera.returncode == 2 and camera.stderr.splitlines()[-1] == "labctl: cam takes no agent"
    finally:
        labctl("down", lab)
