"""NetFlow v9 (RFC 3954), IPFIX (RFC 7011) with reverse elements (RFC 5103) and PSAMP packet reports (RFC 5476).

A `Decoder` is one exporter's: it keeps the templates and the sequence numbers. Bytes in, records out; what cannot be
read is counted in `malformed`, never raised. Chosen over what the package index has: its one decoder of v9 and IPFIX
(`netflow`) was last released in 2023 by a single maintainer and tells no sequence gaps.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

from bench.instruments.telemetry import frames
from bench.instruments.telemetry.flows import PROTOS, Record

V9, IPFIX = 9, 10
_HEADER = {V9: 20, IPFIX: 16}
_TEMPLATES = {V9: (0, 1), IPFIX: (2, 3)}  # set ids of templates and of options templates
_VARIABLE = 65535
REVERSE_PEN = 29305  # RFC 5103: the same element, of the other direction
# Information elements, by IANA's registry of IPFIX entities.
OCTETS, PACKETS, PROTOCOL, SPORT, SOURCE4, DPORT, TARGET4 = 1, 2, 4, 7, 8, 11, 12
LAST_UPTIME, FIRST_UPTIME, SOURCE6, TARGET6, ICMP4, ICMP6 = 21, 22, 27, 28, 32, 139
START_S, END_S, START_MS, END_MS = 150, 151, 152, 153
OBSERVED_US, FRAME, EXPORTED, INTERVAL, SPACE = 324, 315, 410, 305, 306
NF9_INTERVAL = 34
_NTP_EPOCH = 2208988800

Element = tuple[int, int]  # enterprise number (0: IANA), element


class Field(NamedTuple):
    element: Element
    length: int


@dataclass(frozen=True, slots=True)
class Template:
    fields: tuple[Field, ...]
    options: bool

    @property
    def least(self) -> int:
        """The fewest bytes that a record of it has."""
        return sum(1 if f.length == _VARIABLE else f.length for f in self.fields)


@dataclass(frozen=True, slots=True)
class Message:
    """What one datagram said: raw records by element, options apart; the exporter's clocks."""

    version: int
    exported_s: int
    uptime_ms: int
    data: tuple[Mapping[Element, bytes], ...]
    options: tuple[Mapping[Element, bytes], ...]


@dataclass(slots=True)
class Decoder:
    """One exporter's stream. `lost` counts what its sequence numbers skip: datagrams of v9, records of IPFIX."""

    templates: dict[int, Template] = field(default_factory=dict)
    malformed: int = 0
    unknown: int = 0  # data sets whose template had not come
    lost: int = 0
    _next: int | None = None
    _inclusive: bool = False  # softflowd counts the records of the message too, RFC 7011 only those before

    def decode(self, datagram: bytes) -> Message | None:
        """What a datagram says, or None if it is none of these."""
        try:
            version, length = struct.unpack_from("!HH", datagram)
            if version == V9:
                uptime, exported, sequence = struct.unpack_from("!III", datagram, 4)
            elif version == IPFIX and 16 <= length <= len(datagram):
                uptime, (exported, sequence) = 0, struct.unpack_from("!II", datagram, 4)
                datagram = datagram[:length]
            else:
                raise ValueError("neither NetFlow v9 nor IPFIX")
        except (struct.error, ValueError):
            self.malformed += 1
            return None
        data: list[Mapping[Element, bytes]] = []
        options: list[Mapping[Element, bytes]] = []
        try:
            for number, body in _sets(datagram, _HEADER[version]):
                if number in _TEMPLATES[version]:
                    self._learn(version, number == _TEMPLATES[version][1], body)
                elif number >= 256:
                    template = self.templates.get(number)
                    if template is None:
                        self.unknown += 1
                    else:
                        (options if template.options else data).extend(_records(template, body))
        except (struct.error, ValueError, IndexError):
            self.malformed += 1
        self._follow(version, sequence, len(data))
        return Message(version, exported, uptime, tuple(data), tuple(options))

    def _learn(self, version: int, options: bool, body: bytes) -> None:
        at = 0
        while at + 4 <= len(body):
            number, count = struct.unpack_from("!HH", body, at)
            at += 4
            if number < 256:  # padding
                return
            if options and version == V9:
                scope, size = count, struct.unpack_from("!H", body, at)[0]
                count, at = (scope + size) // 4, at + 2
            elif options:
                at += 2  # how many of them are scope: read alike
            fields = []
            for _ in range(count):
                element, length = struct.unpack_from("!HH", body, at)
                at, pen = at + 4, 0
                if version == IPFIX and element & 0x8000:
                    element, pen, at = element & 0x7FFF, struct.unpack_from("!I", body, at)[0], at + 4
                fields.append(Field((pen, element), length))
            template = Template(tuple(fields), options)
            if template.least:  # of nothing, any number would fit; a withdrawal (RFC 7011, 8.1) has no fields
                self.templates[number] = template
            else:
                self.templates.pop(number, None)

    def _follow(self, version: int, sequence: int, records: int) -> None:
        if version == IPFIX and not records:
            return
        step = records if version == IPFIX else 1
        if self._next is None:
            self._inclusive = version == IPFIX and sequence == records
        else:
            expected = self._next + (step if self._inclusive else 0)
            skipped = sequence - expected & 0xFFFFFFFF
            self.lost += skipped if skipped < 1 << 31 else 0  # else one came late, out of order
        self._next = sequence if self._inclusive else sequence + step & 0xFFFFFFFF


def _sets(datagram: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + 4 <= len(datagram):
        number, length = struct.unpack_from("!HH", datagram, at)
        if length < 4 or at + length > len(datagram):
            raise ValueError("a set that is longer than its message")
        yield number, datagram[at + 4:at + length]
        at += length


def _records(template: Template, body: bytes) -> Iterator[Mapping[Element, bytes]]:
    at = 0
    while len(body) - at >= template.least:
        found: dict[Element, bytes] = {}
        for element, size in template.fields:
            length = size
            if length == _VARIABLE:
                length, at = body[at], at + 1
                if length == 255:
                    length, at = struct.unpack_from("!H", body, at)[0], at + 2
            value = body[at:at + length]
            if len(value) < length:
                raise ValueError("a record that is longer than its set")
            found[element] = value
            at += length
        yield found


# --- what records mean ------------------------------------------------------------------------


def records(message: Message, point: str, at: float, offset_s: float, sampled: int = 1) -> Iterator[Record]:
    """Each flow record or packet report of a message. `offset_s`: CLOCK_REALTIME less CLOCK_MONOTONIC.

    Counts are scaled by `sampled` (1:N), as collectors do. Records without addresses say nothing of a flow.
    """
    for raw in message.data:
        if (0, FRAME) in raw:
            found = _report(raw, point, at, offset_s, sampled)
        else:
            found = _flow(raw, message, point, at, offset_s, sampled)
        if found is not None:
            yield found


def interval(message: Message) -> int | None:
    """The sampling that the exporter tells of: 1 of so many packets; None if it tells none."""
    for raw in message.options:
        if (0, NF9_INTERVAL) in raw:
            return max(1, _number(raw, NF9_INTERVAL))
        if (0, INTERVAL) in raw:
            return 1 + _number(raw, SPACE) // max(1, _number(raw, INTERVAL))
    return None


def _number(raw: Mapping[Element, bytes], element: int, pen: int = 0) -> int:
    value = raw.get((pen, element), b"")
    return int.from_bytes(value, "big") if len(value) <= 8 else 0  # longer ones are no counts: RFC 7011, 6.1


def _flow(raw: Mapping[Element, bytes], message: Message, point: str, at: float, offset_s: float,
          sampled: int) -> Record | None:
    addresses = raw.get((0, SOURCE4)) or raw.get((0, SOURCE6)), raw.get((0, TARGET4)) or raw.get((0, TARGET6))
    if not addresses[0] or not addresses[1] or {len(addresses[0]), len(addresses[1])} not in ({4}, {16}):
        return None
    source, target = str(ip_address(addresses[0])), str(ip_address(addresses[1]))
    start, end = _times(raw, message)
    octets, packets = _number(raw, OCTETS), _number(raw, PACKETS)
    back = _number(raw, OCTETS, REVERSE_PEN), _number(raw, PACKETS, REVERSE_PEN)
    proto = PROTOS.get(_number(raw, PROTOCOL) or (1 if (0, ICMP4) in raw else 58 if (0, ICMP6) in raw else 0))
    answers_alone = bool(back[1]) and not packets
    echo, asked = _echo(raw, answers_alone) if proto == "icmp" else (False, None)
    if proto is None or (proto == "icmp" and not echo):
        return None
    ports = (0, 0) if proto == "icmp" else (_number(raw, SPORT), _number(raw, DPORT))
    ends = ((source, ports[0]), (target, ports[1]))
    if asked is None and answers_alone:  # who sent nothing is the target, though the record names it first
        ends = ends[::-1]
    return Record(point, proto, *ends[0], *ends[1], start - offset_s, end - offset_s, at,
                  (octets + back[0]) * sampled, (packets + back[1]) * sampled, asked=asked)


def _echo(raw: Mapping[Element, bytes], answers_alone: bool) -> tuple[bool, bool | None]:
    """Whether a record of ICMP may be of an echo, and whether its source asked; None: not told.

    By type (high byte): 8 and 128 ask, 0 and 129 answer. `answers_alone`: only the end that is named second sent; of
    that softflowd says 0, whatever it was.
    """
    element, asks, answers = (ICMP4, 8, 0) if (0, ICMP4) in raw else (ICMP6, 128, 129)
    pen = REVERSE_PEN if answers_alone and (REVERSE_PEN, element) in raw else 0
    kind = _number(raw, element, pen) >> 8
    if answers_alone and kind == 0:
        return True, None
    return kind in (asks, answers), (kind == asks) == (pen == 0)


def _times(raw: Mapping[Element, bytes], message: Message) -> tuple[float, float]:
    if (0, START_MS) in raw:
        return _number(raw, START_MS) / 1e3, _number(raw, END_MS) / 1e3
    if (0, START_S) in raw:
        return float(_number(raw, START_S)), float(_number(raw, END_S))
    booted = message.exported_s - message.uptime_ms / 1e3
    return booted + _number(raw, FIRST_UPTIME) / 1e3, booted + _number(raw, LAST_UPTIME) / 1e3


def _report(raw: Mapping[Element, bytes], point: str, at: float, offset_s: float, sampled: int) -> Record | None:
    frame = raw[0, FRAME]
    if (0, EXPORTED) in raw:
        frame = frame[:_number(raw, EXPORTED)]
    header = frames.ethernet(frame)
    if header is None:
        return None
    stamp = _number(raw, OBSERVED_US)
    seen = (stamp >> 32) - _NTP_EPOCH + (stamp & 0xFFFFFFFF) / (1 << 32) - offset_s
    return Record(point, header.proto, header.source, header.sport, header.target, header.dport, seen, seen, at,
                  header.length * sampled, sampled, asked=header.asks)
