"""Cloud flow logs: documented lines read, what ports saw written and read back, verdicts, windows, delivery."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from bench.instruments.telemetry import aws, azure, cloud, frames
from bench.instruments.telemetry.cloud import Clock, Delivery, Seen
from bench.instruments.telemetry.flows import told
from lab.model import Sighting

SAME = Clock(0.0, 0.0, 1.0)  # log time is lab time
# Lines of the guide, "Flow log record examples".
ACCEPTED = ("2 123456789010 eni-1235b8ca123456789 172.31.16.139 172.31.16.21 20641 22 6 20 4249 "
            "1418530010 1418530070 ACCEPT OK")
REJECTED = ("2 123456789010 eni-1235b8ca123456789 172.31.9.69 172.31.9.12 49761 3389 6 20 4249 "
            "1418530010 1418530070 REJECT OK")
SILENT = "2 123456789010 eni-1235b8ca123456789 - - - - - - - 1431280876 1431280934 - NODATA"
SKIPPED = "2 123456789010 eni-11111111aaaaaaaaa - - - - - - - 1431280876 1431280934 - SKIPDATA"


def test_documented_lines_of_a_vpc_are_read() -> None:
    one = aws.read(ACCEPTED, 7.0, SAME, aws.V2)
    assert one is not None
    assert (one.proto, one.source, one.sport, one.target, one.dport) == ("tcp", "172.31.16.139", 20641,
                                                                        "172.31.16.21", 22)
    assert (one.packets, one.bytes, one.verdict, one.rule, one.at) == (20, 4249, "allow", None, 7.0)
    refused = aws.read(REJECTED, 7.0, SAME, aws.V2)
    assert refused is not None
    assert refused.verdict == "deny"
    assert aws.read(SILENT, 7.0, SAME, aws.V2) is None
    assert aws.read(SKIPPED, 7.0, SAME, aws.V2) is None


@pytest.mark.parametrize(("version", "line", "verdict", "size"), [
    (2, "1542110377,10.0.0.4,13.67.143.118,44931,443,T,O,A,B,,,,", "allow", None),
    (2, "1542110402,10.0.0.4,13.67.143.118,44931,443,T,O,A,E,25,2541,19,5102", "allow", 7643),
    (2, "1542110377,94.102.49.190,10.5.16.4,28746,443,U,I,D,B,,,,", "deny", None),
    (4, "1663146003599,10.0.0.6,192.0.2.180,23956,443,6,O,B,NX,0,0,0,0", "allow", None),
    (4, "1663146003606,10.0.0.6,192.0.2.180,23956,443,6,O,E,NX,3,767,2,1580", "allow", 2347),
    (4, "1663146003637,203.0.113.17,10.0.0.6,22730,22,6,I,D,NX,0,0,0,0", "deny", None)])
def test_tuples_as_documented_are_read(version: int, line: str, verdict: str, size: int | None) -> None:
    one = azure.read(line, version, "vm", "rule", 1.0, SAME)
    assert (one.verdict, one.bytes, one.asked, one.rule) == (verdict, size, True, "rule")


@given(st.text(max_size=120), st.lists(st.text(max_size=12), max_size=18))
@settings(max_examples=300)
def test_any_text_is_a_line_error_at_worst(text: str, words: list[str]) -> None:
    for line in (text, " ".join(words), " ".join([*ACCEPTED.split()[:9], *words])):
        assert isinstance(aws.records([(0.0, line)], SAME)[1], int)
    for line in (text, ",".join(words), ",".join(["1", "10.0.0.1", "10.0.0.2", *words])):
        for version in (2, 4):
            with contextlib.suppress(azure.LineError):
                azure.read(line, version, "vm", "r", 0.0, SAME)
        azure.records([(0.0, line), (0.0, json.dumps({"records": words}))], SAME, {})


def packet(at: float, host: str, out: bool, layers: object) -> Seen:
    header = frames.parse(bytes(layers))  # type: ignore[call-overload]
    assert header is not None
    return Seen(at, host, out, header)


def talk(start: float, client: str = "a", server: str = "b") -> list[Seen]:
    """A connection as both ports see it: opened at `start`, one exchange, closed 1.5 s later."""
    there, back = IP(src="10.0.0.1", dst="10.0.0.2"), IP(src="10.0.0.2", dst="10.0.0.1")
    steps = [(0.0, there / TCP(sport=40000, dport=80, flags="S")),
             (0.01, back / TCP(sport=80, dport=40000, flags="SA")),
             (0.02, there / TCP(sport=40000, dport=80, flags="A") / (b"x" * 100)),
             (1.5, back / TCP(sport=80, dport=40000, flags="FA")),
             (1.51, there / TCP(sport=40000, dport=80, flags="RA"))]
    return [packet(start + at, host, (layers.src == "10.0.0.1") == (host == client), layers)
            for at, layers in steps for host in (client, server)]


HOMES = {"10.0.0.1": "a", "10.0.0.2": "b"}
MACS = {"a": "02:00:00:00:00:01", "b": "02:00:00:00:00:02"}


@pytest.mark.parametrize("dialect", ["aws", "azure"])
def test_a_connection_over_two_windows_is_one_sighting_with_all_it_carried(dialect: str) -> None:
    clock, delivery = Clock(100.0, 1e9, 60.0), Delivery(60.0, 300.0)
    entries = cloud.entries(talk(100.3), [], HOMES, clock, delivery.interval_s)
    if dialect == "aws":
        found, bad = aws.records(aws.write(entries, ["a", "b"], clock, delivery, False), clock)
    else:
        written = azure.write(entries, MACS, clock, delivery)
        found, bad = azure.records(written, clock, {"020000000001": "a", "020000000002": "b"})
    assert bad == 0
    seen = told(found, 2.0)
    assert {t.sighting.point for t in seen} == {"a", "b"}
    for one in seen:
        s = one.sighting
        assert (s.source, s.sport, s.target, s.dport, s.packets, s.bytes, s.verdict) == (
            "10.0.0.1", 40000, "10.0.0.2", 80, 5, 5 * 40 + 100, "allow")
        assert s.time == pytest.approx(100.3, abs=1 / 60)
        # the window of its first packet ends, then comes delivery: 300 s of log time are 5 s here
        ends = clock.lab((clock.log(100.3) // 60 + 1) * 60)
        assert one.at == pytest.approx(ends + 5.0, abs=1e-6)


@pytest.mark.parametrize("dialect", ["aws", "azure"])
def test_what_the_port_refused_is_refused_in_the_log_and_counted_once(dialect: str) -> None:
    syn = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=40001, dport=22, flags="S")
    seen = [packet(5.0, "a", True, syn), packet(6.0, "a", True, syn)]
    decided = [Sighting("a", 5.0, "tcp", "10.0.0.1", 40001, "10.0.0.2", 22, bytes=40, packets=1, verdict="deny",
                        rule="no shells")]
    entries = cloud.entries(seen, decided, HOMES, SAME, 60.0)
    delivery = Delivery(60.0, 0.0)
    if dialect == "aws":
        found, _bad = aws.records(aws.write(entries, ["a"], SAME, delivery, False), SAME)
    else:
        found, _bad = azure.records(azure.write(entries, MACS, SAME, delivery), SAME, {"020000000001": "a"})
    assert [(one.verdict, one.rule, one.packets) for one in found] == (
        [("deny", None, 1)] if dialect == "aws" else [("deny", "no shells", None)])


def test_packets_that_were_missed_and_ports_that_saw_nothing_are_said() -> None:
    entries = cloud.entries(talk(0.0), [], HOMES, SAME, 60.0)
    lines = [line for _at, line in aws.write(entries, ["a", "b", "idle"], SAME, Delivery(60.0, 0.0), True)]
    assert sum(line.split()[13] == "NODATA" and "eni-idle" in line for line in lines) == 1
    assert sum(line.split()[13] == "SKIPDATA" for line in lines) == 1


@pytest.mark.parametrize(("layers", "expected"), [
    (IP(src="1.2.3.4", dst="5.6.7.8") / UDP(sport=5, dport=53), ("udp", "1.2.3.4", 5, "5.6.7.8", 53, 28)),
    (IP(src="1.2.3.4", dst="5.6.7.8", options=[]) / ICMP(id=77), ("icmp", "1.2.3.4", 77, "5.6.7.8", 0, 28)),
    (IPv6(src="fd00::1", dst="fd00::2") / TCP(sport=9, dport=8), ("tcp", "fd00::1", 9, "fd00::2", 8, 60))])
def test_headers_are_those_that_scapy_wrote(layers: object, expected: tuple[object, ...]) -> None:
    header = frames.parse(bytes(layers))  # type: ignore[call-overload]
    assert header is not None
    assert (header.proto, header.source, header.sport, header.target, header.dport, header.length) == expected
    assert frames.parse(bytes(IP(frag=3) / b"later fragment, no ports")) is None
