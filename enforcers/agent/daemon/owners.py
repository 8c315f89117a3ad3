"""Which process owned a flow's socket: the kernel's socket table first, then /proc. Asked when the event comes.

What is gone by then stays unknown and is counted by reason; nothing is guessed from an earlier answer.
"""

# Plain os calls: this runs per connection, and pathlib's objects cost more than the system calls.
# ruff: noqa: PTH115, PTH123, PTH208
from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections import Counter, deque
from typing import NamedTuple

from . import netlink
from .conntrack import Tuple

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = struct.Struct("=BBBBI")  # family, protocol, extensions, padding, states
_ID = struct.Struct("!HH16s16s")  # sport, dport, source, target
_NO_COOKIE = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)  # any interface, any cookie
_REPLY = struct.Struct("=BBxx48xIIIII")  # family, state, identity, expires, rqueue, wqueue, uid, inode
_TCP_LISTEN = 10
_YOUNG_S, _TRUSTED_S, _FULL_EVERY_S, _UIDS_S = 1.0, 2.0, 0.05, 1.0
_MAX_PLACES = 4096


class Socket(NamedTuple):
    uid: int
    inode: int
    listening: bool


class Owner(NamedTuple):
    """Who owns a socket, as far as it could be told. `why` says why `path` is None; `by` how it was found."""

    path: str | None
    uid: int | None
    by: str = "socket"
    why: str | None = None


class Owners:
    """Answers from this host's own socket table and process list. Not shared between threads."""

    def __init__(self) -> None:
        self._diag = netlink.connect(netlink.NETLINK_SOCK_DIAG)
        self._files = OpenSockets()
        self.missed: Counter[str] = Counter()

    def close(self) -> None:
        self._diag.close()

    def source(self, flow: Tuple) -> Owner:
        """The process that sent the first packet of `flow` from here."""
        found = self._lookup(flow.proto, (flow.source, flow.sport), (flow.target, flow.dport))
        return self._owner(found, "socket")

    def target(self, flow: Tuple) -> Owner:
        """The process that `flow` is for here: its own socket, else who listens on the port."""
        if flow.proto not in (TCP, UDP):
            return Owner(None, None, why="kernel")
        local, remote = (flow.target, flow.dport), (flow.source, flow.sport)
        found = self._lookup(flow.proto, local, remote)
        if found and found.inode and not found.listening:
            owner = self._owner(found, "socket")
            if owner.path:
                return owner
        # A connection that no process has accepted yet has no owner but the one it will be accepted by; of one that
        # is closed already, the listener is who accepted it.
        return self._owner(self._lookup(flow.proto, local, (bytes(len(flow.source)), 0)), "listener")

    def _owner(self, found: Socket | None, by: str) -> Owner:
        if found is None:
            return self._unknown(None, "no socket")
        if not found.inode:
            return self._unknown(found.uid, "socket closed")
        pid = self._files.holder(found.inode, found.uid)
        if pid is None:
            return self._unknown(found.uid, "no process")
        try:
            # An executable that was replaced, as by an upgrade, is still who it was.
            return Owner(os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)"), found.uid, by)
        except OSError:
            return self._unknown(found.uid, "process gone")

    def _unknown(self, uid: int | None, why: str) -> Owner:
        self.missed[why] += 1
        return Owner(None, uid, why=why)

    def _lookup(self, proto: int, local: tuple[bytes, int], remote: tuple[bytes, int]) -> Socket | None:
        if proto in (ICMP, ICMPV6):
            return ping_socket(proto, local[1])
        if proto not in (TCP, UDP):
            return None
        family = socket.AF_INET if len(local[0]) == 4 else socket.AF_INET6
        # The kernel looks UDP sockets up as if for an incoming packet, "swapped for historical reasons" (udp_diag.c).
        one, other = (local, remote) if proto == TCP else (remote, local)
        body = (
            _REQUEST.pack(family, proto, 0, 0, 0xFFFFFFFF)
            + _ID.pack(one[1], other[1], one[0].ljust(16, b"\0"), other[0].ljust(16, b"\0"))
            + _NO_COOKIE
        )
        self._diag.send(netlink.message(_SOCK_DIAG_BY_FAMILY, 0, body))
        for kind, _, reply in netlink.messages(self._diag.recv(netlink.RECEIVE_BYTES)):
            if kind == _SOCK_DIAG_BY_FAMILY:
                _, state, _, _, _, uid, inode = _REPLY.unpack_from(reply)
                return Socket(uid, inode, proto == TCP and state == _TCP_LISTEN)
        return None


def ping_socket(proto: int, identifier: int) -> Socket | None:
    """The unprivileged ping socket with this echo identifier, from /proc/net (sock_diag does not know them)."""
    wanted = f"{identifier:04X}"
    with open("/proc/net/icmp" if proto == ICMP else "/proc/net/icmp6", encoding="ascii") as lines:
        for line in lines:
            fields = line.split()
            if len(fields) > 9 and fields[1].rpartition(":")[2] == wanted:
                return Socket(int(fields[7]), int(fields[9]), False)
    return None


class _File:
    """What one file descriptor of a process was when last read."""

    __slots__ = ("checked", "inode", "since")

    def __init__(self, inode: int, now: float) -> None:
        self.inode, self.since, self.checked = inode, now, now


class OpenSockets:
    """Which process holds a socket inode. Descriptors that have long been the same are not read each time.

    Where a socket was found before is looked at first, since a server of 500 ports has as many descriptors to search:
    without that, four such hosts of 317 used half of all agents' CPU.
    """

    def __init__(self) -> None:
        self._places: dict[int, tuple[str, str]] = {}  # by inode: pid and descriptor; the last asked for at the end
        self._known: dict[str, dict[str, _File]] = {}
        self._hot: dict[int, deque[tuple[str, str]]] = {}
        self._uids: dict[str, frozenset[int]] = {}
        self._uids_at = self._full_at = 0.0

    def holder(self, inode: int, uid: int) -> str | None:
        """The pid that has `inode` open, looking first where sockets of `uid` were found before."""
        wanted = f"socket:[{inode}]"
        place = self._places.pop(inode, None)
        if place is None or _link(*place) != wanted:
            place = self._found(inode, uid, wanted)
        if place is None:
            return None
        self._places[inode] = place
        if len(self._places) > _MAX_PLACES:
            del self._places[next(iter(self._places))]
        return place[0]

    def _found(self, inode: int, uid: int, wanted: str) -> tuple[str, str] | None:
        hot = self._hot.setdefault(uid, deque(maxlen=8))
        for place in hot:
            if _link(*place) == wanted:
                return place
        now = time.monotonic()
        found = self._search(self._candidates(uid, now), inode, now, full=False)
        if found is None and now - self._full_at > _FULL_EVERY_S:
            self._full_at = now
            found = self._search(list(self._uids), inode, now, full=True)
        if found is not None:
            hot.appendleft(found)
        return found

    def _candidates(self, uid: int, now: float) -> list[str]:
        """Processes with this user id; all of them where none has it (the socket was made under another)."""
        running = [pid for pid in os.listdir("/proc") if pid.isdigit()]
        if now - self._uids_at > _UIDS_S:  # a process may change its user
            self._uids_at = now
            self._uids = {}
        self._uids = {pid: self._uids.get(pid) or _uids_of(pid) for pid in running}
        self._known = {pid: files for pid, files in self._known.items() if pid in self._uids}
        return [pid for pid, uids in self._uids.items() if uid in uids] or running

    def _search(self, pids: list[str], inode: int, now: float, full: bool) -> tuple[str, str] | None:
        for pid in pids:
            known = self._known.setdefault(pid, {})
            try:
                descriptors = os.listdir(f"/proc/{pid}/fd")
            except OSError:
                continue  # it ended meanwhile
            found = None
            for fd in descriptors:
                file = known.get(fd)
                settled = file and file.checked - file.since > _YOUNG_S and now - file.checked < _TRUSTED_S
                if file is None or full or not settled:
                    file = known[fd] = _refreshed(file, pid, fd, now)
                if file.inode == inode:
                    found = fd
            if found is not None and _link(pid, found) == f"socket:[{inode}]":
                return pid, found
        return None


def _refreshed(file: _File | None, pid: str, fd: str, now: float) -> _File:
    link = _link(pid, fd)
    inode = int(link[8:-1]) if link.startswith("socket:[") else 0
    if file is None or file.inode != inode:
        return _File(inode, now)
    file.checked = now
    return file


def _link(pid: str, fd: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return ""


def _uids_of(pid: str) -> frozenset[int]:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith("Uid:"):
                return frozenset(int(word) for word in line.split()[1:])
    return frozenset()
