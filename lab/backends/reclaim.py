"""Knowing when the kernel has taken network namespaces back: from its own events, with no privilege outside of the run.

Their last user being gone is not the end: the kernel's clean-up of a namespace (devices, tables, memory) runs later, in
batches, one batch after the other (`cleanup_net` in net/core/net_namespace.c, on a queue of its own). The port of a
host vanishes in the middle of its batch. A namespace of ours that is let go after that, the canary, comes in a later
batch; and that its batch has begun (RTM_DELNSID) proves that all before it are over.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import time
from collections.abc import Collection, Iterator

_CLONE_NEWNET = 0x40000000
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_RTNLGRP_LINK, _RTNLGRP_NSID = 1, 28  # linux/rtnetlink.h
_NLM_F_REQUEST, _NLM_F_ACK = 0x1, 0x4
_NLMSG_ERROR, _RTM_DELLINK, _RTM_NEWNSID, _RTM_DELNSID = 2, 17, 88, 89
_NETNSA_NSID, _NETNSA_FD = 1, 3  # linux/net_namespace.h
_CANARY = 0x7FFFFFF0  # its number with us; the kernel gives out numbers from 0
_BUFFER = 8 << 20
_libc = ctypes.CDLL(None, use_errno=True)


def await_reclaimed(ports: Collection[str], timeout_s: float) -> bool:
    """Wait until the namespaces at the other end of `ports` (veths of the caller's namespace) are all reclaimed.

    Their processes must have been killed. False if `timeout_s` went by: somebody else holds one of them.
    """
    deadline = time.monotonic() + timeout_s
    try:
        _await_no_port(frozenset(ports), deadline)
        _await_canary(deadline)
    except TimeoutError:
        return False
    return True


def _await_no_port(ports: frozenset[str], deadline: float) -> None:
    with _socket(_RTNLGRP_LINK) as events:
        left = _indices(ports)
        while left:
            try:
                for kind, body in _messages(events, deadline):
                    family, index = struct.unpack_from("=B3xi", body)
                    if kind == _RTM_DELLINK and family == socket.AF_UNSPEC:  # a bridge tells of its ports apart
                        left.discard(index)
            except OSError as err:
                if err.errno != errno.ENOBUFS:
                    raise
                left = _indices(ports)  # events were lost


def _await_canary(deadline: float) -> None:
    with _socket(_RTNLGRP_NSID) as events:
        canary = _new_namespace()
        try:
            _number(canary, _CANARY)
        finally:
            os.close(canary)
        while True:
            for kind, body in _messages(events, deadline):
                if kind == _RTM_DELNSID and _CANARY in _numbers(body):
                    return


def _indices(ports: frozenset[str]) -> set[int]:
    return {index for index, name in socket.if_nameindex() if name in ports}


def _new_namespace() -> int:
    """A descriptor of a network namespace that nothing else holds. Only this thread moves, and it comes back."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(_CLONE_NEWNET):
            raise _error("unshare")
        try:
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            if _libc.setns(here, _CLONE_NEWNET):
                raise _error("setns")
    finally:
        os.close(here)


def _error(what: str) -> OSError:
    err = ctypes.get_errno()
    return OSError(err, f"{what}: {os.strerror(err)}")


# --- netlink ---------------------------------------------------------------------------------------


def _socket(group: int) -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    opened.bind((0, 0))  # without an address of its own it is taken for the kernel, which tells itself nothing
    opened.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
    return opened


def _messages(events: socket.socket, deadline: float) -> Iterator[tuple[int, bytes]]:
    """One datagram's messages as (type, body). Raises TimeoutError at `deadline`, OSError ENOBUFS if some were lost."""
    events.settimeout(max(deadline - time.monotonic(), 1e-6))
    data = events.recv(1 << 16)
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        yield kind, data[at + 16:at + length]
        at += (length + 3) & ~3


def _number(namespace: int, number: int) -> None:
    """Give the namespace a number with us, so that we are told of its end."""
    body = struct.pack("=B3x HHi HHi", 0, 8, _NETNSA_NSID, number, 8, _NETNSA_FD, namespace)
    head = struct.pack("=IHHII", 16 + len(body), _RTM_NEWNSID, _NLM_F_REQUEST | _NLM_F_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as asked:
        asked.send(head + body)
        kind, answer = next(_messages(asked, time.monotonic() + 5))
        error = -struct.unpack_from("=i", answer)[0] if kind == _NLMSG_ERROR else 0
        if error:
            raise OSError(error, f"a network namespace's number: {os.strerror(error)}")


def _numbers(body: bytes) -> Iterator[int]:
    at = 4  # struct rtgenmsg, padded
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4:
            return
        if kind == _NETNSA_NSID:
            yield struct.unpack_from("=i", body, at + 4)[0]
        at += (length + 3) & ~3
