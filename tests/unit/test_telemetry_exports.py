"""NetFlow v9, IPFIX and PSAMP as softflowd 1.1.0 sends them: golden datagrams, losses, and bytes that are anything.

The datagrams are of four echoes a family and one TCP connection, port 44768 to 80, recorded at a mirror port.
softflowd's own statistics said 22 packets, 2160 bytes of TCP, and 8 packets, 672 bytes of ICMP.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.instruments.telemetry import exporters, frames, netflow
from bench.instruments.telemetry.exporters import Export
from bench.instruments.telemetry.flows import Record, Told, told
from lab.backends import mirror
from tests.unit.worlds import topologies

DATA = Path(__file__).parents[1] / "data" / "telemetry"
KINDS = ("netflow-v9", "ipfix-biflow", "psamp")


def datagrams(name: str) -> list[bytes]:
    return [bytes.fromhex(line) for line in (DATA / f"{name}.hex").read_text().split()]


def read(stream: list[bytes], sampled: int = 1) -> tuple[list[Record], netflow.Decoder]:
    decoder, found = netflow.Decoder(), []
    for at, datagram in enumerate(stream):
        message = decoder.decode(datagram)
        if message:
            found += netflow.records(message, "office", 2e9 + at, 0.0, sampled)
    return found, decoder


def summed(stream: list[Told]) -> list[tuple[object, ...]]:
    return [(s.proto, s.source, s.sport, s.target, s.dport, s.packets, s.bytes) for s in (t.sighting for t in stream)]


def test_netflow_v9_tells_a_flow_in_two_records_that_become_one_sighting() -> None:
    found, decoder = read(datagrams("netflow-v9"))
    assert (decoder.lost, decoder.malformed, decoder.unknown) == (0, 0, 0)
    assert summed(told(found, 3)) == [
        ("icmp", "10.0.0.1", 0, "10.0.0.2", 0, 8, 672), ("icmp", "fd00::1", 0, "fd00::2", 0, 8, 832),
        ("tcp", "10.0.0.1", 44768, "10.0.0.2", 80, 22, 2160)]
    assert all(one.sighting.verdict is None and one.sighting.process is None for one in told(found, 3))


def test_ipfix_tells_both_directions_in_one_record_and_its_sampling() -> None:
    found, decoder = read(datagrams("ipfix-biflow"), sampled=3)
    assert (decoder.lost, decoder.malformed, decoder.unknown) == (0, 0, 0)
    assert summed(told(found, 3))[-1] == ("tcp", "10.0.0.1", 44768, "10.0.0.2", 80, 21, 2592)
    fresh = netflow.Decoder()
    said = [netflow.interval(m) for m in map(fresh.decode, datagrams("ipfix-biflow")) if m and m.options]
    assert said == [3]


@pytest.mark.parametrize(("sent", "answered", "source"), [(2, 0, "10.0.0.1"), (0, 2, "10.0.0.2"), (2, 2, "10.0.0.1")])
def test_who_sent_nothing_in_a_biflow_is_the_target_whichever_end_it_names_first(sent: int, answered: int,
                                                                                 source: str) -> None:
    """softflowd names the lower address first; of what was never answered, the packets tell who asked."""
    numbers = {netflow.PROTOCOL: 17, netflow.SPORT: 61000, netflow.DPORT: 40000, netflow.START_MS: 10_000,
               netflow.END_MS: 10_100, netflow.PACKETS: sent, netflow.OCTETS: 60 * sent}
    raw = {(0, element): value.to_bytes(8, "big") for element, value in numbers.items()}
    raw |= {(0, netflow.SOURCE4): bytes([10, 0, 0, 1]), (0, netflow.TARGET4): bytes([10, 0, 0, 2]),
            (netflow.REVERSE_PEN, netflow.PACKETS): bytes([answered]),
            (netflow.REVERSE_PEN, netflow.OCTETS): bytes([60 * answered])}
    (one,) = told(netflow.records(netflow.Message(netflow.IPFIX, 10, 0, (raw,), ()), "office", 12.0, 0.0), 1.0)
    assert (one.sighting.source, one.began) == (source, False)
    assert (one.sighting.packets, one.sighting.bytes) == (sent + answered, 60 * (sent + answered))


@pytest.mark.parametrize("element", [netflow.ICMP4, netflow.ICMP6])
def test_an_echo_that_the_end_named_second_sent_is_its_own_though_its_type_is_not_told(element: int) -> None:
    six = element == netflow.ICMP6
    ends = {netflow.SOURCE6 if six else netflow.SOURCE4: bytes(15 if six else 3) + b"\1",
            netflow.TARGET6 if six else netflow.TARGET4: bytes(15 if six else 3) + b"\2"}
    raw = {(0, key): value for key, value in ends.items()}
    raw |= {(0, netflow.PROTOCOL): bytes([58 if six else 1]), (0, netflow.START_MS): bytes(8),
            (0, netflow.END_MS): bytes(8), (0, element): bytes(2), (netflow.REVERSE_PEN, element): bytes(2),
            (netflow.REVERSE_PEN, netflow.PACKETS): b"\1"}

    def sources() -> list[tuple[str, bool]]:
        message = netflow.Message(netflow.IPFIX, 10, 0, (raw,), ())
        return [(one.sighting.source, one.began) for one in told(netflow.records(message, "office", 1.0, 0.0), 1.0)]

    assert sources() == [("::2" if six else "0.0.0.2", True)]
    raw[netflow.REVERSE_PEN, element] = bytes([128 if six else 8, 0])  # one that tells it
    assert sources() == [("::2" if six else "0.0.0.2", True)]
    raw[netflow.REVERSE_PEN, element] = bytes([1 if six else 3, 0])  # unreachable: no echo
    assert sources() == []


def test_a_packet_report_says_what_its_packet_says() -> None:
    found, decoder = read(datagrams("psamp"), sampled=3)
    assert (decoder.lost, decoder.malformed, len(found)) == (0, 0, 4)
    assert summed(told(found, 10)) == [("tcp", "10.0.0.1", 44768, "10.0.0.2", 80, 12, 1524)]


@pytest.mark.parametrize(("name", "gone", "lost"), [("netflow-v9", 3, 1), ("ipfix-biflow", 3, 2), ("psamp", 2, 1)])
def test_what_is_lost_on_the_way_is_counted(name: str, gone: int, lost: int) -> None:
    stream = datagrams(name)
    assert read(stream)[1].lost == 0
    assert read(stream[:gone] + stream[gone + 1:])[1].lost == lost


def test_without_its_template_a_record_is_unknown_not_guessed() -> None:
    found, decoder = read(datagrams("netflow-v9")[1:])
    assert not found
    assert decoder.unknown > 0


@given(st.binary(max_size=400))
@settings(max_examples=300)
def test_any_bytes_are_survived(noise: bytes) -> None:
    frames.parse(noise)
    frames.ethernet(b"\0" * 12 + b"\x08\x00" + noise)
    for version in (b"", b"\0\x09", b"\0\x0a"):
        read([version + noise])


@given(st.sampled_from(KINDS), st.data())
@settings(max_examples=300)
def test_a_stream_that_was_cut_or_changed_is_survived(name: str, data: st.DataObject) -> None:
    stream = datagrams(name)
    which = data.draw(st.integers(0, len(stream) - 1))
    torn = bytearray(stream[which])
    for at in data.draw(st.lists(st.integers(0, min(len(torn), 300) - 1), max_size=6)):
        torn[at] = data.draw(st.integers(0, 255))
    stream[which] = bytes(torn[:data.draw(st.integers(0, len(torn)))])
    told(read(stream)[0], 3)


@given(topologies())
@settings(max_examples=30)
def test_every_port_of_a_mirrored_segment_is_copied_once(topology: object) -> None:
    segments = list(topology.segments)  # type: ignore[attr-defined]
    text = "\n".join(mirror.rules(topology, {segments[0]: "mirror0"}))  # type: ignore[arg-type]
    inside = [index for index, host in enumerate(topology.hosts.values())  # type: ignore[attr-defined]
              if host.segment == segments[0]]
    devices = text.partition("devices = { ")[2].partition(" }")[0].split(", ")
    assert devices == [*(f"p{index}" for index in inside), "r0"]
    assert text.count("dup to mirror0") == 1


def test_how_softflowd_is_called() -> None:
    argv = exporters.arguments(Export("psamp", sampled=10, only="not udp"), "span0", 9995, Path("/run/x.ctl"))
    assert argv[:9] == ["softflowd", "-d", "-i", "span0", "-n", "127.0.0.1:9995", "-v", "psamp", "-A"]
    assert argv[-5:] == ["-C", "128", "-s", "10", "not udp"]
    assert exporters.statistics("Number of active flows: 3\nPackets dropped by libpcap: 2\n") == {
        "active": 3, "dropped": 2}
