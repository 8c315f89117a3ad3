"""Programs on an interface through its clsact qdisc, by rtnetlink. Standard library only, so that agents can carry it.

Beside tcx links (`syscall.link`): a filter is replaced in one step and needs no grace period, while the kernel waits
out one for every tcx link (about 17 ms) and lets nobody else on the machine change an interface meanwhile. Layouts:
include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls}.h. Every call raises OSError.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct

INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
_PARENT, _HANDLE = 0xFFFFFFF1, 0xFFFF0000  # of a clsact qdisc
_NEW_QDISC, _DEL_QDISC, _NEW_FILTER, _DEL_FILTER, _ERROR = 36, 37, 44, 45, 2
_REQUEST, _ACK, _EXCLUSIVE, _CREATE = 1, 4, 0x200, 0x400
_KIND, _OPTIONS, _FD, _NAME, _FLAGS, _DIRECT = 1, 2, 6, 7, 8, 1
_ALL_PROTOCOLS = 0x0300  # ETH_P_ALL in network order
_MINE = 1 << 16 | _ALL_PROTOCOLS  # preference 1
_NETLINK, _RAW = 16, 3
_EXISTS, _GONE = (errno.EEXIST,), (errno.ENOENT, errno.EINVAL, errno.ENODEV)  # as it was to be


class Interfaces:
    """The interfaces of the caller's network namespace."""

    def __init__(self) -> None:
        self._peer = _socket.socket(_NETLINK, _RAW, 0)

    def close(self) -> None:
        self._peer.close()

    def attach(self, index: int, where: int, prog: int, name: str) -> None:
        """Have `prog` decide (direct action) at `where` of an interface, in place of what was attached so before."""
        self._ask(_NEW_QDISC, _CREATE | _EXCLUSIVE, index, _HANDLE, _PARENT, 0, _text(_KIND, "clsact"), _EXISTS)
        options = _word(_FD, prog) + _text(_NAME, name) + _word(_FLAGS, _DIRECT)
        self._ask(_NEW_FILTER, _CREATE, index, 1, where, _MINE, _text(_KIND, "bpf") + _attribute(_OPTIONS, options))

    def clear(self, index: int) -> None:
        """Take the qdisc away with all that is attached to it, also by others."""
        self._ask(_DEL_QDISC, 0, index, _HANDLE, _PARENT, 0, b"", _GONE)

    def detach(self, index: int, where: int) -> None:
        """Take away what `attach` put there, if it is."""
        self._ask(_DEL_FILTER, 0, index, 1, where, _MINE, _text(_KIND, "bpf"), _GONE)

    def _ask(self, kind: int, flags: int, index: int, handle: int, parent: int, more: int, attributes: bytes,
             fine: tuple[int, ...] = ()) -> None:
        body = struct.pack("=BxxxiIII", 0, index, handle, parent, more) + attributes
        head = struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | _ACK | flags, 1, 0)
        self._peer.send(head + body)
        answer = self._peer.recv(1 << 14)
        _, said, _, _, _, code = struct.unpack_from("=IHHIIi", answer)
        if said != _ERROR or (code and -code not in fine):
            raise OSError(-code, os.strerror(-code))


def _attribute(kind: int, content: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(content), kind) + content + b"\0" * (-len(content) % 4)


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _word(kind: int, number: int) -> bytes:
    return _attribute(kind, struct.pack("=I", number))
