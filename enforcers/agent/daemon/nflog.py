"""Denied packets as NFLOG delivers them (linux/netfilter/nfnetlink_log.h)."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from . import netlink
from .conntrack import Tuple

_SUBSYSTEM = 4 << 8
MSG_PACKET, _MSG_CONFIG = _SUBSYSTEM | 0, _SUBSYSTEM | 1
_CFG_CMD, _CFG_MODE, _CFG_TIMEOUT, _CFG_QTHRESH, _CFG_FLAGS = 1, 2, 4, 5, 6
_CMD_BIND, _COPY_PACKET, _FLAG_SEQ = 1, 2, 1
_PAYLOAD, _PREFIX, _UID, _SEQ = 9, 10, 11, 12
_U16, _U32, _PORTS = struct.Struct("!H"), struct.Struct("!I"), struct.Struct("!HH")
_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58
_EXTENSIONS = (0, 43, 60)  # IPv6 hop-by-hop, routing and destination options: length in units of 8 bytes


class Denied(NamedTuple):
    """One packet that the rule set refused. `label` is the log prefix; `uid` is there for local senders only."""

    label: str
    tuple: Tuple
    uid: int | None
    length: int  # the IP packet's length as its header says
    sequence: int


def subscribe(sock: socket.socket, group: int, copy_bytes: int) -> None:
    """Have the packets of `group` sent to `sock`, each at once. Raises OSError where the group is taken."""
    head = netlink.NFGEN.pack(0, 0, group)
    # One request, one acknowledgement: the kernel handles the bind first, then the parameters.
    config = (
        netlink.attribute(_CFG_CMD, bytes([_CMD_BIND]))
        + netlink.attribute(_CFG_MODE, struct.pack("!IBx", copy_bytes, _COPY_PACKET))
        + netlink.attribute(_CFG_QTHRESH, _U32.pack(1))
        + netlink.attribute(_CFG_FLAGS, _U16.pack(_FLAG_SEQ))
    )
    netlink.command(sock, _MSG_CONFIG, head + config)


def parse(body: memoryview) -> Denied | None:
    """The denied packet of one message, or None where it is no IP packet."""
    attrs = netlink.attributes(body[netlink.NFGEN.size :])
    if _PAYLOAD not in attrs:
        return None
    packet = attrs[_PAYLOAD]
    found = packet_tuple(packet)
    if found is None:
        return None
    label = bytes(attrs.get(_PREFIX, b"")).rstrip(b"\0").decode(errors="replace")
    uid = _U32.unpack(attrs[_UID])[0] if _UID in attrs else None
    sequence = _U32.unpack(attrs[_SEQ])[0] if _SEQ in attrs else 0
    length = _U16.unpack_from(packet, 2)[0] if packet[0] >> 4 == 4 else 40 + _U16.unpack_from(packet, 4)[0]
    return Denied(label, found, uid, length, sequence)


def packet_tuple(packet: memoryview) -> Tuple | None:
    """Addresses, protocol and ports of an IP packet cut after its transport header; None where it is not one."""
    if len(packet) < 20:
        return None
    if packet[0] >> 4 == 4:
        proto, offset = packet[9], (packet[0] & 15) * 4
        source, target = bytes(packet[12:16]), bytes(packet[16:20])
    elif packet[0] >> 4 == 6 and len(packet) >= 40:
        proto, offset = packet[6], 40
        source, target = bytes(packet[8:24]), bytes(packet[24:40])
        while proto in _EXTENSIONS and offset + 8 <= len(packet):
            proto, offset = packet[offset], offset + 8 * (packet[offset + 1] + 1)
    else:
        return None
    sport = dport = 0
    if proto in (_TCP, _UDP) and offset + 4 <= len(packet):
        sport, dport = _PORTS.unpack_from(packet, offset)
    elif proto in (_ICMP, _ICMPV6) and offset + 6 <= len(packet):
        sport = _U16.unpack_from(packet, offset + 4)[0]  # the echo identifier
    return Tuple(proto, source, sport, target, dport)
