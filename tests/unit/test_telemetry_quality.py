"""How dialects are judged: kinds apart, fields, delay; a class of telemetry that is dropped is named with its count."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from bench.analysis.telemetry import kind, quality
from bench.instruments.telemetry.flows import Record, Told, told
from bench.report import telemetry as report
from bench.report.telemetry import Dialect, Telemetry
from lab.model import Sighting, Truth
from tests.unit.test_matrices import TOPOLOGY


def truth(number: int, proto: str = "tcp", *, source: str = "web", target: str = "db", lasted: float = 0.1,
          outcome: str = "OPEN", size: int = 100) -> Truth:
    addresses = {"web": "10.0.0.1", "db": "10.0.1.1"}
    return Truth("probe", source, "p", "/p", "u", target, proto, addresses[source], 0 if proto == "icmp" else 40000 +
                 number, addresses[target], 0 if proto == "icmp" else 80, 10.0 + number, 10.0 + number + lasted, size,
                 outcome, outcome == "OPEN")


def seen(one: Truth, at: float = 100.0, **more: object) -> Told:
    return Told(Sighting("port", one.start, one.proto, one.source_address, one.sport, one.target_address, one.dport,
                         **more), at, one.end)  # type: ignore[arg-type]


MADE = [*(truth(n) for n in range(4)), truth(4, lasted=3.0), truth(5, outcome="TIMED_OUT"), truth(6, "udp"),
        truth(7, "udp"), truth(8, source="db", target="db")]


def test_kinds_of_flows_are_apart() -> None:
    assert [kind(one) for one in MADE] == ["short"] * 4 + ["long", "denied", "short", "short", "same host"]


def test_a_class_that_is_dropped_is_named_with_its_count() -> None:
    whole = [seen(one) for one in MADE if one.source != one.target]
    found = quality(MADE, whole, TOPOLOGY)
    assert not any("UDP" in spot for spot in found.blind_spots)
    assert found.kinds["short"].recall == 1.0
    dropped = quality(MADE, [one for one in whole if one.sighting.proto != "udp"], TOPOLOGY)
    assert "did not see 2 of 2 flows over UDP" in dropped.blind_spots
    assert dropped.kinds["short"].recall == pytest.approx(4 / 6)
    assert dropped.kinds["same host"].recall == 0.0


def test_delay_is_from_a_flows_beginning_to_its_first_record() -> None:
    found = quality(MADE, [seen(MADE[0], 13.0), seen(MADE[0], 11.5), seen(MADE[1], 15.0)], TOPOLOGY).delay
    assert (found.p50_s, found.p95_s, found.n) == (1.5, 4.0, 2)


def test_a_record_that_names_the_ends_the_wrong_way_round_is_seen_and_who_began_is_not() -> None:
    """Both ends have ports that clients use, as services of no declared process have: nobody can tell who serves."""
    one = replace(truth(0), sport=40000, dport=61000)
    there = Record("s", "tcp", one.source_address, 40000, one.target_address, 61000, 10.0, 10.1, 12.0, 60, 1)
    back = Record("s", "tcp", one.target_address, 61000, one.source_address, 40000, 10.0, 10.1, 12.0, 60, 1)
    for records, rightly, spot in (([there, back], 1.0, False), ([back, there], 0.0, True)):
        found = quality([one], told(records, 1.0), TOPOLOGY)
        assert (found.recall.recall, found.fields["began"].recall, found.unexplained) == (1.0, rightly, 0)
        assert ("did not rightly tell who began 1 of 1 flows that it saw" in found.blind_spots) is spot
    answered = replace(back, asked=True)  # who says it, wrongly, is taken at its word
    found = quality([one], told([answered], 1.0), TOPOLOGY)
    assert (found.recall.recall, found.unexplained) == (0.0, 1)


def test_an_echo_record_without_identifier_is_of_every_echo_of_the_two_in_its_time() -> None:
    pings = [Truth("probe", "web", "p", "/p", "u", "db", "icmp", "10.0.0.1", ident, "10.0.1.1", 0, start, start + 0.1,
                   56, "OPEN", True) for ident, start in ((7, 10.0), (8, 10.2), (9, 60.0))]
    records = [Record("s", "icmp", "10.0.0.1", 0, "10.0.1.1", 0, 10.0, 10.3, 12.0, 336, 4, asked=True)]
    found = quality(pings, told(records, 1.0), TOPOLOGY)
    assert (found.recall.recall, found.unexplained) == (pytest.approx(2 / 3), 0)
    assert found.fields["bytes"].recall == 0.0  # the sum of two is nobody's own


def test_echoes_of_both_ends_at_once_are_told_apart_where_the_dialect_does_and_else_are_of_both() -> None:
    """Clouds log no type: two hosts that ping each other are one conversation, and nobody knows who began it."""
    web, db = "10.0.0.1", "10.0.1.1"
    pings = [Truth("probe", host, "p", "/p", "u", other, "icmp", *ends, 10.0 + n, 10.1 + n, 56, "OPEN", True)
             for n, (host, other, ends) in enumerate([("web", "db", (web, 7, db, 0)), ("db", "web", (db, 8, web, 0))])]

    def found(asked: tuple[bool | None, bool | None], hears: int = 2) -> tuple[float | None, float | None]:
        records = [Record("s", "icmp", web, 0, db, 0, 10.0, 11.0, 12.0, 84, 1, asked=asked[0]),
                   Record("s", "icmp", db, 0, web, 0, 10.0, 11.0, 12.0, 84, 1, asked=asked[1])][:hears]
        one = quality(pings, told(records, 1.0), TOPOLOGY)
        return one.recall.recall, one.fields["began"].recall

    assert found((True, True)) == (1.0, 1.0)
    assert found((None, None)) == (1.0, 0.5)
    assert found((True, False)) == (0.5, 0.5)  # one asked, the other answered
    assert found((None, None), hears=1) == (0.5, 0.5)  # one alone sent, so the other's echo never came by


def test_directions_and_intervals_become_one_and_a_port_that_is_used_again_does_not() -> None:
    def record(start: float, back: bool) -> Record:
        ends = ("10.0.1.1", 80, "10.0.0.1", 40000) if back else ("10.0.0.1", 40000, "10.0.1.1", 80)
        return Record("s", "tcp", *ends, start, start + 0.5, start + 2, 100, 1)

    found = told([record(10.0, True), record(10.0, False), record(11.0, False), record(50.0, False)], 1.0)
    assert [(t.sighting.source, t.sighting.bytes, t.at) for t in found] == [("10.0.0.1", 300, 12.0),
                                                                            ("10.0.0.1", 100, 52.0)]


def test_what_is_printed_names_blind_spots_losses_and_reasons() -> None:
    found = quality(MADE, [seen(MADE[0])], TOPOLOGY)
    row = report.setting("idle 1 s", found, records=1, lost=3, lost_what="datagrams", factor=60.0)
    whole = Telemetry(scenario="x", arm="none", seed=1, seconds=1.0, flows={"short": 6}, sampled_from=9, dialects=(
        Dialect(name="NetFlow v9", where="a mirror port", settings=(row,)),
        Dialect(name="IPFIX", where="a mirror port", unsupported="softflowd is not installed")))
    out = io.StringIO()
    report.show(whole, Console(file=out, width=160, color_system=None))
    text = out.getvalue()
    assert "blind spot: did not see 2 of 2 flows over UDP" in text
    assert "lost: 3 datagrams" in text
    assert "IPFIX: unsupported, because softflowd is not installed" in text
    assert row.delay_p50_s == 60.0 * 90.0
    assert Telemetry.model_validate_json(whole.model_dump_json()) == whole
