"""Connection tracking over netlink: new and destroyed connections, the live table, flushing it.

Attribute numbers are those of linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from . import netlink

GROUP_NEW, GROUP_DESTROY = 1, 3
_SUBSYSTEM = 1 << 8
MSG_NEW, _MSG_GET, MSG_DELETE = _SUBSYSTEM | 0, _SUBSYSTEM | 1, _SUBSYSTEM | 2
_TUPLE_ORIG, _COUNTERS_ORIG, _COUNTERS_REPLY, _ID, _TIMESTAMP = 1, 9, 10, 12, 20
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTO_NUM, _SRC_PORT, _DST_PORT, _ICMP_ID, _ICMPV6_ID = 1, 2, 3, 4, 7
_U16, _U32, _U64 = struct.Struct("!H"), struct.Struct("!I"), struct.Struct("!Q")
_ICMP_NUMBERS = (1, 58)

# The original tuple as the kernel lays it out for TCP and UDP, from the first attribute on; the constants between the
# values are attribute headers, checked so that another layout takes the general way. 2-3 us per event instead of 10.
_FAST4 = struct.Struct("=HH HH HH4s HH4s HH HHBxxx HH2sxx HH2sxx")
_FAST6 = struct.Struct("=HH HH HH16s HH16s HH HHBxxx HH2sxx HH2sxx")
_HEAD4 = (52, 0x8001, 20, 0x8001, 8, 1, 8, 2, 28, 0x8002, 5, 1, 6, 2, 6, 3)
_HEAD6 = (76, 0x8001, 44, 0x8001, 20, 3, 20, 4, 28, 0x8002, 5, 1, 6, 2, 6, 3)


class Tuple(NamedTuple):
    """Who asked whom, as packed addresses. For icmp `sport` is the echo identifier and `dport` 0."""

    proto: int  # IP protocol number
    source: bytes
    sport: int
    target: bytes
    dport: int


class Entry(NamedTuple):
    """One connection as an event or the table has it. Counters are of both directions; times are realtime ns."""

    id: int
    tuple: Tuple
    packets: int
    bytes: int
    start: int  # 0 where nf_conntrack_timestamp is off
    stop: int


def parse(body: memoryview) -> Entry | None:
    """The entry of one message, or None where it has no tuple."""
    attrs = netlink.attributes(body[netlink.NFGEN.size :])
    if _TUPLE_ORIG not in attrs:
        return None
    found = _fast_tuple(body) or _tuple(attrs[_TUPLE_ORIG])
    packets = size = start = stop = 0
    for which in (_COUNTERS_ORIG, _COUNTERS_REPLY):
        if which in attrs:
            counters = netlink.attributes(attrs[which])
            packets += _U64.unpack(counters[1])[0]
            size += _U64.unpack(counters[2])[0]
    if _TIMESTAMP in attrs:
        times = netlink.attributes(attrs[_TIMESTAMP])
        start = _U64.unpack(times[1])[0] if 1 in times else 0
        stop = _U64.unpack(times[2])[0] if 2 in times else 0
    number = _U32.unpack(attrs[_ID])[0] if _ID in attrs else 0
    return Entry(number, found, packets, size, start, stop)


def _fast_tuple(body: memoryview) -> Tuple | None:
    layout, head = (_FAST4, _HEAD4) if body[0] == socket.AF_INET else (_FAST6, _HEAD6)
    if len(body) < 4 + layout.size:
        return None
    f = layout.unpack_from(body, 4)
    # f: 4 header words, then (2 header words, value) for source and target, 2 words, then three more of the latter
    if f[0:6] + f[7:9] + f[10:14] + f[15:17] + f[18:20] != head:
        return None
    return Tuple(f[14], f[6], _U16.unpack(f[17])[0], f[9], _U16.unpack(f[20])[0])


def _tuple(data: memoryview) -> Tuple:
    parts = netlink.attributes(data)
    address, proto = netlink.attributes(parts[_TUPLE_IP]), netlink.attributes(parts[_TUPLE_PROTO])
    number = proto[_PROTO_NUM][0]
    source, target = (address[1], address[2]) if 1 in address else (address[3], address[4])
    if number in _ICMP_NUMBERS:
        echo = proto.get(_ICMP_ID) or proto.get(_ICMPV6_ID)
        return Tuple(number, bytes(source), _U16.unpack(echo)[0] if echo else 0, bytes(target), 0)
    sport, dport = (_U16.unpack(proto[key])[0] if key in proto else 0 for key in (_SRC_PORT, _DST_PORT))
    return Tuple(number, bytes(source), sport, bytes(target), dport)


def table() -> Iterator[Entry]:
    """Every connection that is tracked in this network namespace now."""
    with netlink.connect(netlink.NETLINK_NETFILTER) as sock:
        sock.send(netlink.message(_MSG_GET, netlink.NLM_F_DUMP, netlink.NFGEN.pack(0, 0, 0)))
        for kind, _, body in netlink.dump_replies(sock):
            if kind == MSG_NEW and (entry := parse(body)):
                yield entry


def flush() -> None:
    """Forget every tracked connection of this network namespace."""
    with netlink.connect(netlink.NETLINK_NETFILTER) as sock:
        netlink.command(sock, MSG_DELETE, netlink.NFGEN.pack(0, 0, 0))
