"""The shapes that the kernel program and the daemon share (state.h), as bytes and back. Pure."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Any, NamedTuple

PORTS, SLOTS, FLOWS = 65536, 256, 65536
PICK_UP, RESET_REFUSED, RESET_CUT, ALLOW = 1, 2, 4, 8
TIMEOUTS = ("first", "opening", "established", "closing", "closed", "udp_single", "udp_multiple", "icmp", "other")
COUNTERS = ("seen", "denied", "spoofed", "malformed", "out_of_state", "out_of_window", "bad_fragment", "unrelated",
            "neighbour", "foreign", "ring_full", "no_room")
CLASS_OTHER, CLASS_ICMP, CLASS_WIDE, FIRST_CLASS = 0, 1, 0xFFFF, 2
SERVICES_BYTES = 2 * 2 * 65536

_PORT = struct.Struct("=I6s2x16s16s16s")
_TENANT = struct.Struct(f"=II{len(TIMEOUTS)}Q")
_KEY = struct.Struct("=IBBH16s16s2s2s")
_FLOW = struct.Struct("=QQ2Q2III4B4x")  # in the table its two sides follow
KEY_BYTES, TOLD_BYTES, FLOW_BYTES = _KEY.size, _FLOW.size, _FLOW.size + 48
CLOSED_AT = 50  # of `closed` in a flow
RECORD_BYTES = KEY_BYTES + 4 + TOLD_BYTES
_PROTOCOLS = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmp"}


def address(text: str) -> bytes:
    """16 bytes; IPv4 mapped into IPv6."""
    if ":" in text:
        return socket.inet_pton(socket.AF_INET6, text)
    return b"\0" * 10 + b"\xff\xff" + socket.inet_aton(text)


def text_of(packed: bytes, family: int) -> str:
    return socket.inet_ntoa(packed[12:]) if family == 4 else socket.inet_ntop(socket.AF_INET6, packed)


def link_local(mac: bytes) -> bytes:
    """The address that a host makes of its MAC (RFC 4291, appendix A)."""
    return b"\xfe\x80" + b"\0" * 6 + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]


def prefix(text: str) -> bytes:
    """`struct prefix` of a CIDR."""
    network = ipaddress.ip_network(text)
    length = network.prefixlen + (96 if network.version == 4 else 0)
    return struct.pack("=I", length) + address(str(network.network_address))


def port_value(port: dict[str, Any], tenant: int) -> bytes:
    mac = bytes.fromhex(port["mac"].replace(":", ""))
    return _PORT.pack(tenant, mac, address(port["v4"]), address(port["v6"]), link_local(mac))


NOBODYS_PORT = bytes(_PORT.size)


def tenant_value(generation: int, policy: dict[str, Any]) -> bytes:
    options = policy["options"]
    flags = (PICK_UP * options["pick_up"] | RESET_REFUSED * options["reset_refused"]
             | RESET_CUT * options["reset_cut"] | ALLOW * policy["allow"])
    return _TENANT.pack(generation, flags, *(round(options["timeouts_s"][name] * 1e9) for name in TIMEOUTS))


def generation_of(value: bytes) -> int:
    return int(_TENANT.unpack(value)[0])


class Seen(NamedTuple):
    """One flow as a port saw it; `source` is who began. Times in ns of CLOCK_MONOTONIC."""

    port: int
    proto: str
    source: str
    sport: int
    target: str
    dport: int
    start_ns: int
    expires_ns: int
    bytes: int
    packets: int
    allowed: bool
    rule: int
    generation: int
    told: bool


def seen(key: bytes, flow: bytes) -> Seen:
    """A flow's entry, or the parts of a record of it."""
    ifindex, proto, family, _pad, own, peer, own_port, peer_port = _KEY.unpack(key)
    (start, expires, own_bytes, peer_bytes, own_packets, peer_packets, generation, rule, allowed, opener, _closed,
     told) = _FLOW.unpack_from(flow)
    ends = [(text_of(own, family), int.from_bytes(own_port, "big")),
            (text_of(peer, family), int.from_bytes(peer_port, "big"))]
    if proto in (1, 58):  # no ports: an identifier, which is the asking side's
        identifier = ends[0][1]
        ends = [(where, 0) for where, _port in ends]
        ends[opener] = (ends[opener][0], identifier)
    source, target = ends[opener], ends[1 - opener]
    return Seen(ifindex, _PROTOCOLS.get(proto, str(proto)), source[0], source[1], target[0], target[1], start, expires,
                own_bytes + peer_bytes, own_packets + peer_packets, bool(allowed), rule, generation, bool(told))


def record(key: bytes, flow: bytes) -> bytes:
    """The record of a flow in the table, as the program would tell it."""
    return key + bytes(4) + flow[:TOLD_BYTES]


def split(record: bytes) -> tuple[bytes, bytes]:
    """A record's key and flow."""
    return record[:KEY_BYTES], record[KEY_BYTES + 4:]
