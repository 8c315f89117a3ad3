"""What a cloud's platform would log of the packets at its virtual ports: windows of an aggregation interval. Pure.

A model, no cloud: packets are those that the lab's switch ports saw, verdicts those of the arm at these ports. Time is
compressed: of `Clock.factor` seconds in the log one passes in the lab, so that minutes of aggregation and delivery fit
into a run. Log lines carry log time, as the cloud would write it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.instruments.telemetry.frames import ACK, FIN, RST, SYN, Header
from lab.model import Sighting

Conversation = tuple[str, str, int, str, int]  # protocol, ends with ports, as a packet goes


@dataclass(frozen=True, slots=True)
class Clock:
    """Log time (seconds of the epoch) and lab time (CLOCK_MONOTONIC): both agree at the beginning of the run."""

    begun: float
    offset_s: float  # CLOCK_REALTIME less CLOCK_MONOTONIC
    factor: float

    def log(self, at: float) -> float:
        return self.begun + self.offset_s + (at - self.begun) * self.factor

    def lab(self, logged: float) -> float:
        return self.begun + (logged - self.offset_s - self.begun) / self.factor


@dataclass(frozen=True, slots=True)
class Delivery:
    """Seconds of log time: how long records are aggregated, and until they can be read when a window is over."""

    interval_s: float
    delay_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """A packet at a host's port. `out`: the host sent it, and the port had not judged it yet."""

    at: float
    host: str
    out: bool
    header: Header


@dataclass(slots=True)
class Entry:
    """One direction of a conversation at one port in one window. Times are log time."""

    host: str
    window: int
    talk: Conversation
    out: bool
    first: float
    last: float
    packets: int = 0
    bytes: int = 0
    flags: int = 0
    allowed: bool = True
    rule: str | None = None
    asks: bool | None = None

    @property
    def ends(self) -> bool:
        """Whether its last packets closed the conversation."""
        return bool(self.flags & (FIN | RST))


def conversation(header: Header) -> Conversation:
    """As clouds log it: ICMP has no ports, and so no identifier."""
    ports = (0, 0) if header.proto == "icmp" else (header.sport, header.dport)
    return header.proto, header.source, ports[0], header.target, ports[1]


def _turned(talk: Conversation) -> Conversation:
    return talk[0], talk[3], talk[4], talk[1], talk[2]


def entries(packets: Iterable[Seen], decided: Iterable[Sighting], homes: Mapping[str, str], clock: Clock,
            interval_s: float) -> list[Entry]:
    """Every direction of every conversation, by port and window, in order of time.

    A conversation is refused at a port whose own records (`decided`) say so, and then stands there once, with those
    counts: what came before the verdict is not passed on and not counted again. `homes`: whose each address is.
    """
    found: dict[tuple[str, int, Conversation], Entry] = {}
    refused: dict[tuple[str, Conversation], list[float]] = defaultdict(list)
    rules: dict[tuple[str, Conversation], str] = {}
    for one in decided:
        ports = (0, 0) if one.proto == "icmp" else (one.sport, one.dport)
        talk = (one.proto, one.source, ports[0], one.target, ports[1])
        if one.verdict != "deny":
            if one.rule:
                rules[one.point, talk] = rules[one.point, _turned(talk)] = one.rule
            continue
        at = clock.log(one.time)
        window, out = int(at // interval_s), homes.get(one.source) == one.point
        entry = found.setdefault((one.point, window, talk),
                                 Entry(one.point, window, talk, out, at, at, allowed=False, asks=True))
        entry.packets += one.packets or 1
        entry.bytes += one.bytes or 0
        entry.rule, entry.first, entry.last = one.rule, min(entry.first, at), max(entry.last, at)
        refused[one.point, talk].append(one.time)
    for packet in packets:
        talk = conversation(packet.header)
        if any(abs(packet.at - t) < _SAME_S for t in refused.get((packet.host, talk), ())):
            continue
        at = clock.log(packet.at)
        key = (packet.host, int(at // interval_s), talk)
        if key not in found:
            found[key] = Entry(packet.host, key[1], talk, packet.out, at, at, rule=rules.get((packet.host, talk)))
        entry = found[key]
        entry.packets, entry.bytes = entry.packets + 1, entry.bytes + packet.header.length
        entry.flags |= _flags(packet.header.flags)
        entry.first, entry.last = min(entry.first, at), max(entry.last, at)
        entry.asks = packet.header.asks if entry.asks is None else entry.asks
    return sorted(found.values(), key=lambda e: (e.window, e.first, e.host, e.talk))


def _flags(flags: int) -> int:
    """As clouds tell them: an acknowledgement only with SYN, so that who began can be told from who answered."""
    return flags & (FIN | SYN | RST) | (flags & ACK if flags & SYN else 0)


_SAME_S = 5.0  # a refused opening and what is sent again of it; after that a port may belong to another flow


def idle(found: Sequence[Entry], hosts: Iterable[str]) -> list[tuple[str, int]]:
    """(host, window) where a port saw nothing, between the first window and the last."""
    if not found:
        return []
    busy = {(entry.host, entry.window) for entry in found}
    windows = range(min(e.window for e in found), max(e.window for e in found) + 1)
    return [(host, window) for host in hosts for window in windows if (host, window) not in busy]


def deliveries(found: Sequence[Entry], clock: Clock, delivery: Delivery) -> Mapping[int, float]:
    """By window, when (lab time) its records can be read."""
    return {entry.window: clock.lab((entry.window + 1) * delivery.interval_s + delivery.delay_s) for entry in found}
