"""From what collectors kept to rows: readings at longer intervals, streams with losses, what is not there and why."""

from __future__ import annotations

from pathlib import Path

from bench import dialects
from bench.dialects import Kept, World
from bench.instruments.telemetry.cloud import Clock
from bench.instruments.telemetry.exporters import Export, Stream
from bench.instruments.telemetry.port_tap import Heard
from bench.instruments.telemetry.readings import Readings, reading
from bench.telemetry import lasting
from lab.policy import decide, flows
from lab.scenario import load
from tests.unit.test_matrices import TOPOLOGY
from tests.unit.test_telemetry_exports import datagrams
from tests.unit.test_telemetry_logs import talk
from tests.unit.test_telemetry_quality import MADE, seen

CLOCK = Clock(0.0, 0.0, 60.0)
WORLD = World(TOPOLOGY, MADE)
SCENARIO = Path(__file__).parents[2] / "scenarios" / "three-tier.yaml"


def test_who_reads_less_often_knows_later() -> None:
    readings = Readings([(12.0, [seen(MADE[0]).sighting]), (14.0, [seen(MADE[1]).sighting]), (16.0, []), (17.0, [])], 7)
    dialect, rows = dialects.own(Kept(CLOCK, readings), WORLD, "arm", "ports")
    assert [one.setting for one in dialect.settings] == ["read every 2 s", "read every 4 s", "read every 8 s"]
    assert [[told.at for told in row.told] for row in rows] == [[12.0, 14.0], [14.0, 14.0], [17.0, 17.0]]
    assert [one.lost for one in dialect.settings] == [7, 7, 7]


def test_an_arm_without_records_and_a_machine_without_softflowd_say_so() -> None:
    kept = Kept(CLOCK, records_lack="none keeps none", exports_lack="softflowd is not installed", ports_lack="no port")
    own, rows = dialects.own(kept, WORLD, "none", "")
    exported, more = dialects.exported(kept, WORLD, dialects.EXPORTS)
    logged, logs, lines = dialects.logged(kept, WORLD)
    assert not rows and not more and not logs and not lines
    assert [d.unsupported for d in (own, *exported, *logged)] == [
        "none keeps none", *["softflowd is not installed"] * 3, *["no port"] * 2]


def test_streams_of_one_export_are_one_row_with_all_that_was_lost() -> None:
    export = Export("netflow-v9", 1, 10)
    whole = list(enumerate(datagrams("netflow-v9"), 100))
    streams = [Stream(export, "a", whole),
               Stream(export, "b", [*whole[:2], *whole[3:]], missed_packets=4, still_open=2)]
    (dialect,), (row,) = dialects.exported(Kept(CLOCK, streams=streams), WORLD, [export])
    assert dialect.settings[0].lost == 1 + 4 + 2
    assert dialect.settings[0].lost_what == (
        "(1 datagrams, 2 flows still open at the end, 4 packets that softflowd had no room for)")
    assert {told.sighting.point for told in row.told} == {"a", "b"}


def test_cloud_logs_have_three_settings_each_and_keep_their_lines() -> None:
    logged, rows, lines = dialects.logged(Kept(CLOCK, heard=Heard(talk(1.0, "web", "api"), dropped=3)), WORLD)
    assert [len(one.settings) for one in logged] == [3, 3]
    assert all(one.settings[0].lost == 3 and one.settings[0].malformed == 0 and one.assumes for one in logged)
    assert {(dialect, words) for dialect, words, _at, _line in lines} == {(r.dialect, r.setting.setting) for r in rows}


def test_where_no_port_decides_a_cloud_logs_all_as_accepted_and_that_is_assumed() -> None:
    heard = Heard(talk(1.0, "web", "api"))
    judging, _, _ = dialects.logged(Kept(CLOCK, heard=heard), WORLD)
    logged, rows, _ = dialects.logged(Kept(CLOCK, heard=heard, ports_judge=False), WORLD)
    assert {told.sighting.verdict for row in rows for told in row.told} == {"allow"}
    for one, other in zip(logged, judging, strict=True):
        assert set(one.assumes) - set(other.assumes) == set(dialects.OPEN_ASSUMES)
        assert "all is logged as accepted" in one.where != other.where


def test_what_was_told_until_the_end_is_read_and_a_failure_is_kept() -> None:
    with reading(lambda: ([seen(MADE[0]).sighting], 5), 60.0) as readings:
        pass
    assert (len(readings.found), readings.lost) == (1, 5)

    def broken() -> tuple[list[object], int]:
        raise ValueError("web: not a telemetry line")

    with reading(broken, 60.0) as readings:  # type: ignore[arg-type]
        pass
    assert readings.failed == "web: not a telemetry line"


def test_long_flows_are_allowed_ones_between_hosts() -> None:
    scenario = load(SCENARIO)
    chosen = lasting(scenario, list(flows(scenario)))
    assert chosen
    assert len({(flow.source, flow.target) for flow in chosen}) == len(chosen)
    for flow in chosen:
        assert flow.source != flow.target
        assert decide(scenario.policy, flow, scenario.topology).allow
