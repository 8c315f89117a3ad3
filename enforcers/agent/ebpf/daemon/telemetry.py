"""The kernel's flow records, in bulk, told in names: what `collect` prints.

Records are kept as bytes until somebody asks: parsing one costs several times what the kernel spends on it.
"""

from __future__ import annotations

import struct

from . import sockets
from .lean import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

FLOW, EXEC, HANDED_ON, FIRST_SEEN = 1, 2, 3, 4
PROVISIONAL = 0x80000000  # the bit of a number that the kernel gave to what nobody had looked at
IN, OUT, _TCP = 0, 1, 6
VERDICTS = ("deny", "allow", "would-deny", None)
STATES = ("closed", "open", "refused", "cut", "unanswered")
_LIVE = 1
_HEAD = struct.Struct("<HH")
_FLOW = struct.Struct("<HHBBBBQQQQII16s16sHHIIIIII4xQQ")
_NETNS_AT = _FLOW.size - 8
_NETNS = struct.Struct("<Q")
_EXEC = struct.Struct("<HHIQQQIIIIIIIIQQ256s256s")
_PROTOCOLS = {1: "icmp", 58: "icmp", 6: "tcp", 17: "udp"}
_MAPPED = b"\0" * 10 + b"\xff\xff"
_NOWHERE = bytes(16)


class Exec:
    """An executable that nobody has named yet. `names`: leaf first, within its file system."""

    __slots__ = ("arguments", "exe", "id", "names", "netns", "pid")

    def __init__(self, data: bytes) -> None:
        (_, _, self.id, _, inode, changed, device, path, _, _, self.pid, names, arguments, _, _, self.netns,
         path_text, argument_text) = _EXEC.unpack_from(data)
        self.exe = (inode, changed, device, path)
        self.names = [part.decode(errors="surrogateescape") for part in path_text[:names].split(b"\0") if part]
        self.arguments = argument_text[:arguments].split(b"\0")


def kind_of(record: bytes) -> int:
    return int(_HEAD.unpack_from(record)[0])


def split(data: bytes) -> Iterator[bytes]:
    """The records that an iterator of the kernel's printed in a row."""
    return (data[at: at + _FLOW.size] for at in range(0, len(data) - _FLOW.size + 1, _FLOW.size))


def netns_of(record: bytes) -> int:
    return int(_NETNS.unpack_from(record, _NETNS_AT)[0])


def netns_of_handed_on(record: bytes) -> int:
    return int(_NETNS.unpack_from(record, 32)[0])


def is_denied(record: bytes) -> bool:
    return VERDICTS[record[6] & 3] in ("deny", "would-deny")


def came_in(record: bytes) -> bool:
    """Whether it is about a TCP connection that somebody wanted to this host."""
    return record[4] == _TCP and record[5] == IN


class Teller:
    """Tells one host's records in names. `path` gives the path of an executable by its number, or None."""

    def __init__(self, path: Callable[[int], str | None], users: dict[int, str], rules: list[str],
                 addresses: list[str]) -> None:
        self._path, self._users, self._rules = path, users, rules
        self._own = {4: addresses[0], 6: addresses[-1]}

    def flow(self, data: bytes) -> dict[str, Any]:
        """One flow, told from the side that asks. What could not be told is null."""
        (_, _, proto, direction, verdict, state, opened, closed, sent, received, packets_sent, packets_received,
         local, remote, local_port, remote_port, exe, uid, tgid, peer_exe, peer_uid, rule, _, _) = _FLOW.unpack(data)
        here, there = self._address(local, remote), address_text(remote)
        mine, theirs = (self._path(exe), self._user(uid)), (self._path(peer_exe), self._user(peer_uid))
        source, target = (here, there) if direction == OUT else (there, here)
        (process, user), (target_process, target_user) = (mine, theirs) if direction == OUT else (theirs, mine)
        sport, dport = (local_port, remote_port) if direction == OUT else (remote_port, local_port)
        name = _PROTOCOLS.get(proto, str(proto))
        told = {
            "t": "flow", "time": round(opened / 1e9, 6), "proto": name, "source": source, "sport": sport,
            "target": target, "dport": 0 if name == "icmp" else dport, "process": process, "user": user,
            "target_process": target_process, "target_user": target_user, "bytes": sent + received,
            "packets": packets_sent + packets_received, "verdict": VERDICTS[verdict & 3], "rule": self.rule(rule),
            "where": "out" if direction == OUT else "in", "state": STATES[state], "pid": tgid,
        }
        if state == _LIVE or not closed:
            told["open"] = True
        else:
            told["end"] = round(closed / 1e9, 6)
        return told

    def rule(self, number: int) -> str:
        """The name of a rule: of those that were dropped meanwhile, the number."""
        if number == 0:
            return "default"
        return self._rules[number - 1] if number <= len(self._rules) else f"rule {number}"

    def _user(self, uid: int) -> str | None:
        return None if uid == 0xFFFFFFFF else self._users.get(uid, str(uid))

    def _address(self, local: bytes, remote: bytes) -> str:
        if local == _NOWHERE:  # refused before the kernel chose one: this host has one a family
            return self._own[4 if remote.startswith(_MAPPED) else 6]
        return address_text(local)


def address_text(address: bytes) -> str:
    if address.startswith(_MAPPED):
        return sockets.address_text(address[12:])
    return sockets.address_text(address)


def lines(records: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    for record in records:
        yield dumps(record) + b"\n"
