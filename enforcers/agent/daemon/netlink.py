"""Netlink without a library: sockets, message framing, attributes."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

NETLINK_SOCK_DIAG, NETLINK_NETFILTER = 4, 12
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_SO_RCVBUFFORCE = 33  # may pass net.core.rmem_max; needs CAP_NET_ADMIN
HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id (linux/netlink.h)
NFGEN = struct.Struct("!BBH")  # family, version 0, resource id in network order
_ATTR = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
RECEIVE_BYTES = 65536

Attributes = dict[int, memoryview]


def connect(protocol: int, receive_buffer: int = 0, blocking: bool = True) -> socket.socket:
    """A bound netlink socket; `receive_buffer` bytes where the kernel allows it, else as much as it gives."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    sock.bind((0, 0))
    if receive_buffer:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(blocking)
    return sock


def join(sock: socket.socket, group: int) -> None:
    sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)


def message(kind: int, flags: int, body: bytes, sequence: int = 1) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, flags | NLM_F_REQUEST, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    return _ATTR.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def attributes(data: memoryview) -> Attributes:
    """The attributes of one level, by type; a nested one's value can be given to this function again."""
    found: Attributes = {}
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length, kind = _ATTR.unpack_from(data, offset)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def messages(data: bytes) -> Iterator[tuple[int, int, memoryview]]:
    """(type, flags, body) of each message of one datagram."""
    view, offset = memoryview(data), 0
    while offset + HEADER.size <= len(data):
        length, kind, flags, _, _ = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            break
        yield kind, flags, view[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


def command(sock: socket.socket, kind: int, body: bytes) -> None:
    """Send one request and wait for its acknowledgement; raises OSError with the kernel's errno."""
    sock.send(message(kind, NLM_F_ACK, body))
    for _ in dump_replies(sock):
        pass


def dump_replies(sock: socket.socket) -> Iterator[tuple[int, int, memoryview]]:
    """Messages until the kernel says done or acknowledges; raises OSError with the kernel's errno."""
    while True:
        for kind, flags, body in messages(sock.recv(RECEIVE_BYTES)):
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                code = -struct.unpack_from("=i", body)[0]
                if code:
                    raise OSError(code, os.strerror(code))
                return
            yield kind, flags, body


def drain(sock: socket.socket, limit: int) -> tuple[list[bytes], int]:
    """Up to `limit` datagrams that are waiting on a non-blocking socket, and how often the kernel had lost some."""
    got: list[bytes] = []
    lost = 0
    receive = sock.recv
    while len(got) < limit:
        try:
            got.append(receive(RECEIVE_BYTES))
        except BlockingIOError:
            break
        except OSError as err:
            if err.errno != errno.ENOBUFS:
                raise
            lost += 1  # the kernel says that, not how many
    return got, lost
