"""Flow telemetry of real packets in every dialect: who sees what, a planted blind spot by its count, nothing left."""

from __future__ import annotations

from typing import Any

import pytest

from bench import registry
from lab import features
from lab.model import Feature
from tests.e2e.isolated import call, needs_root

LACKS = features.missing(tuple(Feature(name, "the dialects") for name in ("tc-bpf", "clang", "libbpf", "softflowd")))
AGENT_LACKS = features.missing(tuple(registry.load("agent-nft").needs()))
pytestmark = [needs_root, pytest.mark.e2e, pytest.mark.skipif(bool(LACKS), reason=str(LACKS))]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """One run for all tests; if it fails, it is not made again for each."""
    return dict(call("tests.e2e.telemetry_lab", "run", "virtual-switch", timeout_s=180))


def rows(found: dict[str, Any], dialect: str) -> dict[str, dict[str, Any]]:
    (one,) = [d for d in found["found"]["dialects"] if d["name"] == dialect]
    if (one["unsupported"] or "").startswith("mirror: "):  # tried inside of the run alone
        pytest.skip(one["unsupported"])
    assert one["unsupported"] is None, one
    return {row["setting"]: row for row in one["settings"]}


def recall(row: dict[str, Any], kind: str) -> float:
    return float(row["kinds"][kind]["recall"])


def test_all_kinds_of_flows_were_made(found: dict[str, Any]) -> None:
    assert all(found["found"]["flows"].values()), found["found"]["flows"]


def test_the_ports_own_records_tell_everything_between_hosts_with_its_verdict(found: dict[str, Any]) -> None:
    (row, *_others) = rows(found, "records of virtual-switch").values()
    assert recall(row, "short") > 0.99
    assert recall(row, "long") == 1.0
    assert recall(row, "denied") > 0.99
    assert recall(row, "same host") == 0.0
    assert row["fields"]["process"]["recall"] == 0.0


@pytest.mark.parametrize("dialect", ["NetFlow v9", "IPFIX"])
def test_a_mirror_behind_the_firewall_tells_what_passed_and_no_verdict(found: dict[str, Any], dialect: str) -> None:
    row = rows(found, dialect)["idle 1 s, active 10 s"]
    assert recall(row, "short") > 0.98, row
    assert recall(row, "long") == 1.0
    assert recall(row, "denied") < 0.5, row
    assert recall(row, "same host") == 0.0
    assert row["fields"]["verdict"]["recall"] == 0.0
    assert row["malformed"] == 0
    assert 0.0 < row["delay_p50_s"] < 60


def test_a_class_of_telemetry_that_is_dropped_is_named_with_its_count(found: dict[str, Any]) -> None:
    settings = rows(found, "NetFlow v9")
    whole, without = settings["idle 1 s, active 10 s"], settings["idle 1 s, active 10 s, only not udp"]
    named = [spot for spot in without["blind_spots"] if spot.endswith("flows over UDP")]
    assert len(named) == 1, without["blind_spots"]
    assert not any(spot.endswith("flows over UDP") for spot in whole["blind_spots"])
    assert named == [f"did not see {found['over_udp']} of {found['over_udp']} flows over UDP"]
    assert found["over_udp"] > 0


def test_sampling_sees_long_flows_rather_than_short_ones(found: dict[str, Any]) -> None:
    row = rows(found, "packet sampling")["1 of 50 packets"]
    assert recall(row, "long") > recall(row, "short")
    assert recall(row, "short") < 0.9, row


@pytest.mark.parametrize("dialect", ["AWS VPC flow logs", "Azure VNet flow logs"])
def test_cloud_logs_have_verdicts_and_come_late(found: dict[str, Any], dialect: str) -> None:
    settings = rows(found, dialect)
    assert len(settings) == 3
    delays = [row["delay_p50_s"] for row in settings.values()]
    assert delays == sorted(delays)
    for row in settings.values():
        assert row["malformed"] == 0
        assert recall(row, "short") > 0.98, row
        assert recall(row, "denied") > 0.95, row
        assert recall(row, "same host") == 0.0
        assert row["fields"]["verdict"]["recall"] > 0.5


@pytest.mark.slow
@pytest.mark.skipif(bool(AGENT_LACKS), reason=str(AGENT_LACKS))
def test_under_an_agent_a_cloud_and_a_mirror_know_what_left_the_host_and_call_it_accepted() -> None:
    """What it refuses at the source never comes to a port; what it refuses at the target is logged as accepted."""
    found = dict(call("tests.e2e.telemetry_lab", "run", "agent-nft", timeout_s=180))
    own = next(iter(rows(found, "records of agent-nft").values()))
    logged = next(iter(rows(found, "AWS VPC flow logs").values()))
    exported = rows(found, "NetFlow v9")["idle 1 s, active 10 s"]
    assert recall(own, "denied") > 0.99
    for row in (logged, exported):
        assert recall(row, "short") > 0.98, row
        assert 0 < recall(row, "denied") < 0.5, row
    assert any(spot.startswith("did not rightly say the verdict") for spot in logged["blind_spots"])
    assert found["left"] == {"links": [], "tables": [], "running": []}


def test_nothing_is_left_and_the_raw_data_is_kept(found: dict[str, Any]) -> None:
    assert found["left"] == {"links": [], "tables": [], "running": []}
    assert {"truth.jsonl.gz", "told.jsonl.gz", "datagrams.jsonl.gz", "log-lines.jsonl.gz"} <= set(found["files"])
