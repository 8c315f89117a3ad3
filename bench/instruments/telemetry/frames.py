"""The header of a packet that somebody copied: who, whom, what, how long. Never raises, whatever the bytes are."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address

from bench.instruments.telemetry.flows import PROTOS

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
_ECHO = {(1, 8): True, (1, 0): False, (58, 128): True, (58, 129): False}  # (protocol, type) → whether it asks
_EXTENSIONS = (0, 43, 60)  # hop-by-hop, routing, destination options: RFC 8200
_ETHERNET, _V4, _V6 = 14, 0x0800, 0x86DD


@dataclass(frozen=True, slots=True)
class Header:
    """`length` is the IP packet's own, in bytes. For an ICMP echo `sport` is its identifier, `asks` if it is a request.

    For TCP `asks` is True of a SYN and False of its answer; else None: the packet does not say who began.
    """

    proto: str
    source: str
    sport: int
    target: str
    dport: int
    length: int
    flags: int = 0
    asks: bool | None = None


def ethernet(frame: bytes) -> Header | None:
    """The header inside an Ethernet frame; None where it is not IP."""
    kind = int.from_bytes(frame[12:14], "big") if len(frame) > _ETHERNET else 0
    return parse(frame[_ETHERNET:]) if kind in (_V4, _V6) else None


def parse(data: bytes) -> Header | None:
    """The header of an IP packet; None for what has no ports or echo identifier (later fragments, other ICMP)."""
    try:
        return _parse(data)
    except (struct.error, ValueError, IndexError):  # cut short
        return None


def _parse(data: bytes) -> Header | None:
    if data[0] >> 4 == 4:
        at, proto, length = (data[0] & 15) * 4, data[9], int.from_bytes(data[2:4], "big")
        source, target = data[12:16], data[16:20]
        if at < 20 or int.from_bytes(data[6:8], "big") & 0x1FFF:
            return None
    elif data[0] >> 4 == 6:
        at, proto, length = 40, data[6], 40 + int.from_bytes(data[4:6], "big")
        source, target = data[8:24], data[24:40]
        while proto in _EXTENSIONS:
            proto, at = data[at], at + 8 * (data[at + 1] + 1)
    else:
        return None
    name = PROTOS.get(proto)
    ends = str(ip_address(source)), str(ip_address(target))
    if name == "icmp":
        asks = _ECHO.get((proto, data[at]))
        ident = struct.unpack_from("!H", data, at + 4)[0]
        return None if asks is None else Header(name, ends[0], ident, ends[1], 0, length, 0, asks)
    if name is None:
        return None
    sport, dport = struct.unpack_from("!HH", data, at)
    flags = data[at + 13] if name == "tcp" else 0
    begins = {SYN: True, SYN | ACK: False}.get(flags & (SYN | ACK | RST | FIN))
    return Header(name, ends[0], sport, ends[1], dport, length, flags, begins)
