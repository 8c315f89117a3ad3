"""The same requests as packets saw them: what the generator reports, checked against stamps on the client's wire.

A tap listens on each client host while a window runs (`tapped`); `check` lays its packets beside the connections that
the generator says it made. The kernel stamps a packet when it passes the client's interface, so what lies between the
stamp and the generator's own is the generator's: its Python, its queue, its lies.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.analysis.stats import percentile
from bench.instruments.certificate import Check
from bench.instruments.host_tap import RECORD, SNAP
from bench.instruments.traffic import Connection, Piped, TrafficWindow

TAP = Path(__file__).with_name("host_tap.py")
FRAMES = 1 << 16  # 16 MiB of kernel memory a client: a second at some 6,000 connections
# How far the figures may lie from those of the wire. The generator's Python lies between packet and report: 0.1-0.3 ms
# a visit on an idle processor.
TOLERANCE_SHARE, TOLERANCE_US = 0.25, 500.0
TAIL_TOLERANCE_US = 5_000.0  # of p99: one preemption between packet and report decides it in a short window
LAG_LIMIT_US = 10_000.0
MATCHED_SHARE = 0.99
_OUTGOING, _INCOMING = 4, 0
_SYN, _ACK = 0x02, 0x10


class WireError(RuntimeError):
    """A tap could not be placed or said nothing; the message says on which host."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP packet at the client's interface. `at`: seconds of CLOCK_REALTIME; `payload` in bytes."""

    at: float
    outgoing: bool
    source: str
    sport: int
    target: str
    dport: int
    flags: int
    payload: int


@dataclass(frozen=True, slots=True)
class Trace:
    """What one client's tap heard. `drops`: packets it had no room for."""

    packets: tuple[Packet, ...]
    drops: int


@dataclass(frozen=True, slots=True)
class OnWire:
    """One connection as packets: seconds of CLOCK_MONOTONIC of its SYN and its first and last payload received."""

    syn: float
    first: float
    last: float


SpawnRoot = Callable[[str, Sequence[str]], Piped]


@contextlib.contextmanager
def tapped(spawn: SpawnRoot, hosts: Sequence[str], python: str, script: str = str(TAP),
           frames: int = FRAMES) -> Iterator[dict[str, Trace]]:
    """Listen on `hosts` while the body runs; afterwards the mapping holds each host's trace. Raises WireError.

    `spawn` starts a command as root on a host, `python` and `script` are paths there.
    """
    taps: dict[str, Piped] = {}
    traces: dict[str, Trace] = {}
    try:
        for host in hosts:
            taps[host] = spawn(host, [python, "-I", "-S", script, str(frames)])
        for host, tap in taps.items():
            if tap.stdout.readline() != b"ready\n":
                raise WireError(f"wire: the tap on {host} did not start; it needs packet sockets (CAP_NET_RAW)")
        yield traces
        for tap in taps.values():
            tap.stdin.close()
        for host, tap in taps.items():
            traces[host] = _read(host, tap)
    finally:
        for tap in taps.values():
            tap.kill()


def _read(host: str, tap: Piped) -> Trace:
    line = tap.stdout.readline()
    if not line:
        raise WireError(f"wire: the tap on {host} died")
    said = json.loads(line)
    raw = tap.stdout.read(said["frames"] * RECORD)
    found = (parse(raw[at:at + RECORD]) for at in range(0, len(raw), RECORD))
    return Trace(tuple(packet for packet in found if packet), said["drops"])


def parse(record: bytes) -> Packet | None:
    """One of the tap's records; None for what is no whole TCP header."""
    ns, kind, length = struct.unpack_from("<QBB", record)
    data = record[10:10 + length]
    if length < 40 or kind not in (_OUTGOING, _INCOMING):
        return None
    if data[0] >> 4 == 4:
        at, whole = (data[0] & 15) * 4, int.from_bytes(data[2:4], "big")
        source, target = data[12:16], data[16:20]
    else:
        at, whole = 40, 40 + int.from_bytes(data[4:6], "big")
        source, target = data[8:24], data[24:40]
    if length < at + 14 or length > SNAP:
        return None
    sport, dport = struct.unpack_from("!HH", data, at)
    return Packet(ns / 1e9, kind == _OUTGOING, str(ipaddress.ip_address(source)), sport,
                  str(ipaddress.ip_address(target)), dport, data[at + 13], whole - at - (data[at + 12] >> 4) * 4)


def on_wire(packets: Sequence[Packet], offset_s: float) -> dict[tuple[str, int, str, int], list[OnWire]]:
    """Every connection that the packets show, by (source, port, target, port) as the client has it, in time order.

    `offset_s` is CLOCK_REALTIME less CLOCK_MONOTONIC. `first` and `last` are 0.0 where no payload came.
    """
    found: dict[tuple[str, int, str, int], list[OnWire]] = {}
    for packet in sorted(packets, key=lambda one: one.at):
        at = packet.at - offset_s
        if packet.outgoing and packet.flags & (_SYN | _ACK) == _SYN:
            key = (packet.source, packet.sport, packet.target, packet.dport)
            known = found.setdefault(key, [])
            if not known or known[-1].first:  # a SYN sent again is still the same connection
                known.append(OnWire(at, 0.0, 0.0))
        elif not packet.outgoing and packet.payload > 0:
            known = found.get((packet.target, packet.dport, packet.source, packet.sport), [])
            if known:
                known[-1] = OnWire(known[-1].syn, known[-1].first or at, at)
    return found


def check(window: TrafficWindow, traces: Mapping[str, Trace]) -> tuple[Check, ...]:
    """The certificate's checks of the wire: everything seen, sent in time, and the same latencies."""
    visits, matched, wanted = _visits(window, traces)
    drops = sum(trace.drops for trace in traces.values())
    share = matched / wanted if wanted else 0.0
    return (Check("wire: matched", share, MATCHED_SHARE, "share", share >= MATCHED_SHARE, "wire",
                  f"connections of the generator found among the packets ({drops} dropped)", at_least=True),
            *_compared(window, [(v.last - v.due) * 1e6 for v in visits], [(v.syn - v.due) * 1e6 for v in visits]))


def own_share_us(window: TrafficWindow, traces: Mapping[str, Trace]) -> float | None:
    """What of the median latency is the generator's own: all but the time from the first SYN to the last payload."""
    ours = percentile(window.from_intended_us, 50)
    theirs = percentile([(v.last - v.syn) * 1e6 for v in _visits(window, traces)[0]], 50)
    return None if ours is None or theirs is None else ours - theirs


@dataclass(slots=True)
class _Visit:
    """One visit on the wire: when it was due, its first SYN and its last payload."""

    due: float
    syn: float
    last: float


def _visits(window: TrafficWindow, traces: Mapping[str, Trace]) -> tuple[list[_Visit], int, int]:
    """Every visit of sustain that the packets show, how many connections they show, and of how many."""
    visits: dict[tuple[str, float], _Visit] = {}
    matched = wanted = 0
    for client, trace in traces.items():
        seen = on_wire(trace.packets, window.clock_offset_s)
        for connection in _measured(window, client):
            wanted += 1
            packets = _nearest(seen, connection)
            if packets is None or not packets.last:
                continue
            matched += 1
            visit = visits.setdefault((client, connection.due), _Visit(connection.due, packets.syn, packets.last))
            visit.syn, visit.last = min(visit.syn, packets.syn), max(visit.last, packets.last)
    return list(visits.values()), matched, wanted


def _measured(window: TrafficWindow, client: str) -> list[Connection]:
    phases = window.phases[client]
    return [c for c in window.connections if c.client == client and c.last and phases.within_sustain(c.due)]


def _nearest(seen: Mapping[tuple[str, int, str, int], Sequence[OnWire]], one: Connection) -> OnWire | None:
    same = seen.get((one.source, one.sport, one.target, one.dport), ())
    return min(same, key=lambda packets: abs(packets.syn - one.start), default=None)


def _compared(window: TrafficWindow, wire_us: Sequence[float], lags_us: Sequence[float]) -> list[Check]:
    """Percentiles of the reported latencies beside those of the wire, both from the intended send time."""
    lag = percentile(lags_us, 90)
    found = [Check("wire: send lag p90", lag, LAG_LIMIT_US, "us", lag is not None and lag <= LAG_LIMIT_US, "wire",
                   "first packets left late: p90" if lag is not None else "no packet of any visit was seen")]
    for q, floor in ((50, TOLERANCE_US), (99, TAIL_TOLERANCE_US)):
        ours, theirs = percentile(window.from_intended_us, q), percentile(wire_us, q)
        if ours is None or theirs is None:
            found.append(Check(f"wire: p{q}", None, floor, "us", ok=False, where="wire",
                               why=f"no p{q} to compare: the generator or the wire shows no answered visit"))
            continue
        limit = max(floor, TOLERANCE_SHARE * theirs)
        found.append(Check(f"wire: p{q}", abs(ours - theirs), limit, "us", abs(ours - theirs) <= limit, "wire",
                           f"p{q} is {ours:.0f} us as reported, {theirs:.0f} us on the wire"))
    return found
