"""agent-ebpf at its limits: a thousand connections cut, killed twenty times, silent, overrun, on hundreds of hosts.

Figures are printed (`pytest -s`); gated are counts, and times only far beyond what was ever measured.
"""

from __future__ import annotations

import pytest

from enforcers.agent.agent_ebpf import AgentEbpf
from lab import features
from tests.e2e.isolated import call, needs_isolation, needs_root

MISSING = features.missing(AgentEbpf().needs())
pytestmark = [needs_root, needs_isolation, pytest.mark.e2e,
              pytest.mark.skipif(bool(MISSING), reason=f"no eBPF agent here: {MISSING}")]
HELPER = "tests.e2e.ebpf_cuts"


def test_a_thousand_connections_are_cut_idle_ones_too_and_the_allowed_go_on() -> None:
    for one in call(HELPER, "cut", 2)["rounds"]:
        print(f"\nlast reset after {one['last_ms']} ms, switch {one['update_ms']} ms, walk {one['revoke_ms']} ms")
        assert one["cut"] == {"idle": 500, "active": 500}
        assert one["kept"] == ["OPEN"] and one["kept_cut"] == 0
        assert max(one["last_ms"].values()) < 20_000


def test_killed_twenty_times_under_load_with_a_change_pending() -> None:
    """Never more than the old policy lets through; what is allowed goes on, also what is open; no denial is lost."""
    found = call(HELPER, "killed", 20)
    assert found["broken"] == [] and found["fresh"] == [] and found["leaked"] == []
    assert found["took_over"] == found["changed"] == 20
    assert all(seen == wanted for seen, wanted in found["after"]), found["after"]
    assert found["told"] >= found["attempts"] > 100, "each attempt that was refused"
    assert found["told"] <= found["attempts"] + 20, "about a death a record may come again; see docs/agent-ebpf.md"
    print(f"\n{found['told']} refused attempts told, {found['told_twice']} of them twice")
    assert found["lost"] == [{}] * 3


def test_an_agent_that_is_silent_closes_or_opens_as_configured() -> None:
    """New flows; established ones go on either way. The next agent ends it."""
    found = call(HELPER, "silent", 20)
    allowed, denied = "OPEN", "EACCES"
    assert found["before"] == found["at_once"] == found["again"] == [[allowed, denied], [allowed, denied], "OPEN"]
    assert found["later"] == [[denied, denied], [allowed, allowed], "OPEN"]
    assert found["seconds"] > 3, "it had been heard of a moment before"


@pytest.mark.parametrize("hosts", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_every_host_of_a_large_lab_enforces_and_one_small_agent_serves_them(hosts: int) -> None:
    found = call("tests.e2e.ebpf_scale", "deployed", hosts, timeout_s=600)
    print(f"\n{hosts} hosts: {found['agent_s']:.1f} s, of which ansible's own {found['nothing_s']:.1f}; again "
          f"{found['agent_up_s']:.1f} s; {found['memory']['pss']:.1f} MB in all; {found['bytes_per_host']:.0f} B each")
    assert found["wrong"] == [] and found["open"] >= 200
    assert found["memory"]["pss"] < 12 * hosts / 4
    assert found["agent_s"] < 10 * found["nothing_s"]


@pytest.mark.slow
def test_events_are_told_or_counted_as_lost_at_any_rate() -> None:
    rates = [5_000, 10_000, 20_000, 40_000, 80_000, 160_000, 320_000, 640_000, 1_280_000]
    for one in call(HELPER, "loss", rates, timeout_s=600):
        print(f"\nasked {one['asked']}/s, came {one['rate']}/s: {one['made']} events, {one['lost']} lost")
        assert one["told"] + one["lost"] == one["made"]
