"""The certificate: every check has its fault planted, fails for it alone, and says so in words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.instruments import certificate
from bench.instruments.certificate import certify, conntrack, occupied
from bench.instruments.locust_pacing import Sampler, clock_offset_ns, facts, occupancy

GOOD: dict[str, Any] = {
    "cpu": 0.2, "cpu_gap_s": 0.26, "lag_p50_us": 80.0, "lag_p90_us": 150.0, "lag_p99_us": 300.0,
    "clock_offset_ns": [10**18, 10**18 + 2_000], "clock_seconds": 1.5, "time_wait": 3, "ports_used": 4, "ports": 28232,
    "conntrack": 200, "conntrack_max": 262144}


def results(finished: int = 100, **change: Any) -> dict[str, dict[str, Any]]:
    """Two clients, the fault on the second."""
    return {"one": {"visits": 100, "finished": 100, "generator": GOOD},
            "two": {"visits": 100, "finished": finished, "generator": GOOD | change}}


def test_nothing_wrong_is_valid() -> None:
    found = certify(results())
    assert found.valid and found.reasons == ()
    assert [c.name for c in found.checks] == ["generator cpu", "cpu sampling", "send lag p90", "finished", "TIME_WAIT",
                                              "ephemeral ports", "conntrack", "clock"]


@pytest.mark.parametrize(("change", "name", "reason"), [
    ({"cpu": 0.61}, "generator cpu",
     "traffic: two: the generator used too much of its core for a second: 61% (at most 50%)"),
    ({"cpu_gap_s": 2.5}, "cpu sampling",
     "traffic: two: the generator's CPU was not sampled often enough: 2.5 s (at most 1 s)"),
    ({"lag_p90_us": 12_340.0}, "send lag p90", "traffic: two: the generator sent late: p90: 12.3 ms (at most 10.0 ms)"),
    ({"finished": 90}, "finished", "traffic: two: visits were not finished in time: 90% (at least 99.0%)"),
    ({"time_wait": 14_000}, "TIME_WAIT",
     "traffic: two: closed connections hold the client's ports in TIME_WAIT: 50% (at most 20%)"),
    ({"ports_used": 20_000}, "ephemeral ports",
     "traffic: two: the client's ephemeral ports are in use: 71% (at most 50%)"),
    ({"conntrack": 250_000}, "conntrack",
     "traffic: two: the table of tracked connections is filling up, 250200 of 262144: 95% (at most 90%)"),
    ({"clock_offset_ns": [10**18, 10**18 - 5_000_000]}, "clock",
     "traffic: two: the wall clock was stepped within the window: 5.0 ms (at most 850 us)"),
])
def test_each_fault_fails_its_check_alone(change: dict[str, Any], name: str, reason: str) -> None:
    found = certify(results(**change))
    assert [check.name for check in found.checks if not check.ok] == [name]
    assert found.reasons == (reason,) and not found.valid


def test_a_value_that_is_no_number_is_not_good() -> None:
    assert not certify(results(cpu=float("nan"))).valid


def test_a_slewing_clock_is_no_step() -> None:
    assert certify(results(clock_offset_ns=[0, 700_000], clock_seconds=1.5)).valid  # 467 ppm


def test_without_tracking_there_is_no_table_to_fill() -> None:
    found = conntrack({"one": (None, None), "two": (None, None)})
    assert found.ok and found.value is None and found.why == "no connection tracking there"


def test_tables_of_all_hosts_count_together() -> None:
    """Each namespace counts its own, the kernel's limit is one for all."""
    assert conntrack({"one": (130_000, 262_144)}).ok
    assert not conntrack({"one": (130_000, 262_144), "router": (130_000, 262_144)}).ok


def test_other_hosts_are_asked_for_their_tables() -> None:
    answers = {"router": b"12\n262144\n", "web": b""}
    testbed = SimpleNamespace(run=lambda host, argv: SimpleNamespace(stdout=answers[host]))
    assert occupied(testbed, ["router", "web"]) == {"router": (12, 262144), "web": (None, None)}  # type: ignore[arg-type]


def test_further_checks_take_the_place_of_their_like() -> None:
    found = certify(results())
    worse = conntrack({"router": (262_000, 262_144)})
    assert found.and_checks([worse]).reasons == (f"traffic: {worse.reason}",)


def test_the_generator_says_of_itself_what_the_checks_read() -> None:
    offset = clock_offset_ns()
    said = facts(Sampler(), [0.001, 0.002, 0.003], (offset, clock_offset_ns()), 1.0)
    assert set(GOOD) <= set(said)
    assert (said["lag_p50_us"], said["lag_p99_us"]) == (2000.0, 3000.0)
    assert certificate.certify({"one": {"visits": 1, "finished": 1, "generator": said}}).checks[-1].ok
    assert occupancy()["ports"] == said["ports"] > 100
