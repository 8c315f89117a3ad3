"""Telemetry: what connection tracking and the log tell, put together per flow, kept until it is collected.

Cost, measured on a 2-core virtual machine: see `Watch.pump`.
"""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from . import conntrack, netlink, nflog, settings
from .conntrack import Entry, Tuple
from .owners import Owner, Owners

NFLOG_GROUP, SNAPLEN = 7, 96
_RECEIVE_BYTES = 32 << 20  # about 60,000 events that wait while we are busy
_BATCH = 4096
_ASK_AT_ONCE = 64  # owners looked up before new events are taken in
_MAX_PENDING = 4096
_SETTLE_S = 1.0  # how long `collect` works off what is waiting before it answers
_LATE_S = 0.25  # a connection this old is not worth asking about while others wait: its socket is likely gone
_MAX_RECORDS = 500_000
_PROTOCOLS = {1: "icmp", 58: "icmp", 6: "tcp", 17: "udp"}
_ICMP = (1, 58)
_NOBODY = Owner(None, None, why="not local")
_LATE = Owner(None, None, why="event late")
_UNSEEN = Owner(None, None, why="beginning not seen")
_MARK_USER = 0xFFF  # the bits of a connection's mark that say whose socket asked; see the rule set


class _Flow:
    """One connection: who asked whom, and who they are. Times are CLOCK_MONOTONIC seconds, `uid` the kernel's word."""

    __slots__ = ("bytes", "end", "packets", "source", "target", "time", "tuple", "uid")

    def __init__(self, tuple_: Tuple, time_: float, owner: Owner, uid: int | None) -> None:
        self.tuple, self.time, self.source, self.target, self.uid = tuple_, time_, owner, owner, uid
        self.packets = self.bytes = 0
        self.end: float | None = None


class Watch:
    """Sockets, open flows and records of one host (`attribute` true) or router."""

    def __init__(self, policy: dict[str, Any], attribute: bool) -> None:
        self.events = netlink.connect(netlink.NETLINK_NETFILTER, _RECEIVE_BYTES, blocking=False)
        for group in (conntrack.GROUP_NEW, conntrack.GROUP_DESTROY):
            netlink.join(self.events, group)
        self.denials = netlink.connect(netlink.NETLINK_NETFILTER, _RECEIVE_BYTES)
        nflog.subscribe(self.denials, NFLOG_GROUP, SNAPLEN)
        self.denials.setblocking(False)
        self._owners = Owners() if attribute else None
        self._attribute = attribute
        self._open: dict[int, _Flow] = {}
        self._pending: list[_Flow] = []  # to be asked about, the newest last
        self._done: list[tuple[int, _Flow]] = []
        self._denied: list[dict[str, Any]] = []
        self._senders: dict[Tuple, Owner] = {}  # of what a monitor let pass just now, for the connection's own event
        self._lost: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()
        self._events = 0
        self._log_sequence: int | None = None
        self._since = time.monotonic()
        self.configure(policy)

    def configure(self, policy: dict[str, Any]) -> None:
        """Take over user names and addresses from the policy file."""
        self._mode = policy["mode"]
        self._users = {int(uid): name for uid, name in policy["users"].items()}
        self._marks: dict[int, int] = dict(enumerate(policy["marks"], 1))
        texts = [*policy["addresses"], "::1"]
        self._local = {socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text) for text in texts}

    def close(self) -> None:
        self.events.close()
        self.denials.close()
        if self._owners:
            self._owners.close()

    # --- events -------------------------------------------------------------------------------

    def pump(self) -> bool:
        """Take in what is waiting and ask about some of it; whether there is more to do.

        The newest are asked about first: their sockets are the likeliest to be still there, so that a flood costs the
        flows that are lost anyway. On one core: 10 us per connection event, 15 us per denied packet, 35 us per end
        that is asked about.
        """
        refused, lost = netlink.drain(self.denials, _BATCH)
        self._lost["nflog"] += lost
        seen, lost = netlink.drain(self.events, _BATCH)
        self._lost["conntrack"] += lost
        now = time.monotonic()
        offset = now - time.time()
        for data in refused:
            for kind, _, body in netlink.messages(data):
                if kind == nflog.MSG_PACKET:
                    self._deny(body, now)
        for data in seen:
            for kind, _, body in netlink.messages(data):
                if entry := conntrack.parse(body):
                    self._events += 1
                    if kind == conntrack.MSG_NEW:
                        self._open[entry.id] = flow = self._begun(entry, now, offset, _LATE)
                        self._pending.append(flow)
                    elif kind == conntrack.MSG_DELETE:
                        self._destroyed(entry, now, offset)
        self._ask(_ASK_AT_ONCE)
        self._senders.clear()
        return bool(self._pending) or len(seen) == _BATCH or len(refused) == _BATCH

    def _begun(self, entry: Entry, now: float, offset: float, owner: Owner) -> _Flow:
        begun = entry.start / 1e9 + offset if entry.start else now
        return _Flow(entry.tuple, begun, owner, self._marks.get(entry.mark & _MARK_USER))

    def _ask(self, most: int) -> None:
        """Attribute up to `most` of what is pending. What is late is left: a connection that stays is asked again."""
        if self._owners is None:
            for flow in self._pending:
                flow.source = flow.target = _NOBODY
            self._pending.clear()
        if len(self._pending) > _MAX_PENDING:  # more comes in than can be asked about: give the oldest up
            self._unknown["event late"] += _MAX_PENDING // 2
            del self._pending[: _MAX_PENDING // 2]
        while self._pending and most > 0:
            flow = self._pending.pop()
            if time.monotonic() - flow.time > _LATE_S:
                self._unknown["event late"] += 1
            else:
                flow.source, flow.target = self._attributed(flow.tuple)
                most -= 1

    def _destroyed(self, entry: Entry, now: float, offset: float) -> None:
        flow = self._open.pop(entry.id, None) or self._unseen(entry, now, offset)
        flow.packets, flow.bytes = entry.packets, entry.bytes
        flow.end = entry.stop / 1e9 + offset if entry.stop else now
        if len(self._done) < _MAX_RECORDS:
            self._done.append((entry.id, flow))
        else:
            self._lost["records"] += 1

    def _unseen(self, entry: Entry, now: float, offset: float) -> _Flow:
        """A connection whose beginning was lost, or lies before us."""
        self._unknown["beginning not seen"] += self._attribute
        return self._begun(entry, now, offset, _UNSEEN)

    def _deny(self, body: memoryview, now: float) -> None:
        denied = nflog.parse(body)
        if denied is None:
            return
        if self._log_sequence is not None:
            self._lost["nflog"] += (denied.sequence - self._log_sequence - 1) & 0xFFFFFFFF
        self._log_sequence = denied.sequence
        verdict, _, where = denied.label.partition(" ")
        found = denied.tuple
        if where.endswith(" reply"):  # the flow is the other way round than the packet
            icmp = found.proto in _ICMP
            found = Tuple(found.proto, found.target, found.sport if icmp else found.dport, found.source,
                          0 if icmp else found.sport)
        source, target = self._attributed(found)
        if source.path and verdict != "deny":  # it passes: connection tracking is about to tell of it as well
            self._senders[found] = source
        uid = denied.uid if where == "out" else None  # of a reply it is the target's
        if len(self._denied) < _MAX_RECORDS:
            record = self._identity(found, now) | {"t": "deny", "verdict": verdict, "where": where}
            self._denied.append(record | self._names(source, target, uid) | {"bytes": denied.length, "packets": 1})
        else:
            self._lost["records"] += 1

    def _attributed(self, flow: Tuple) -> tuple[Owner, Owner]:
        if self._owners is None:
            return _NOBODY, _NOBODY
        # The sender first: its socket may not live long, a listener's does.
        source = self._senders.pop(flow, None)
        if source is None:
            source = self._owners.source(flow) if self._is_local(flow.source) else _NOBODY
        return source, self._owners.target(flow) if self._is_local(flow.target) else _NOBODY

    def _is_local(self, address: bytes) -> bool:
        return address in self._local or (len(address) == 4 and address[0] == 127)

    # --- records ------------------------------------------------------------------------------

    def collect(self) -> Iterator[dict[str, Any]]:
        """What happened since the last call, and every connection that is open now with its counters so far.

        A header first. An open connection comes again in later calls, under the same id and time.
        """
        deadline = time.monotonic() + _SETTLE_S
        while self.pump() and time.monotonic() < deadline:
            pass
        done, self._done = self._done, []
        denied, self._denied = self._denied, []
        live = list(self._live())
        yield self._header(len(done), len(live), len(denied))
        yield from (self._flow(number, flow) for number, flow in done)
        yield from (self._flow(number, flow) for number, flow in live)
        yield from denied

    def _live(self) -> Iterator[tuple[int, _Flow]]:
        now = time.monotonic()
        offset = now - time.time()
        found: dict[int, _Flow] = {}
        for entry in conntrack.table():
            flow = self._open.get(entry.id) or self._unseen(entry, now, offset)
            if flow.source is _LATE:
                flow.source, flow.target = self._attributed(flow.tuple)
            flow.packets, flow.bytes = entry.packets, entry.bytes
            found[entry.id] = flow
            yield entry.id, flow
        # What the table no longer has and no event ended (its event was lost) would stay for ever.
        self._open = found

    def _header(self, done: int, live: int, denied: int) -> dict[str, Any]:
        since, self._since = self._since, time.monotonic()
        unknown = self._unknown + (self._owners.missed if self._owners else Counter())
        header = {
            "t": "header", "version": 1, "mode": self._mode, "attributed": self._attribute,
            "since": round(since, 6), "until": round(self._since, 6), "closed": done, "open": live, "denied": denied,
            "events": self._events, "lost": dict(+self._lost), "unknown": dict(unknown),
            "cpu_s": round(time.process_time(), 4), "settings": settings.read(),
        }
        self._events = 0
        self._lost.clear()
        self._unknown.clear()
        if self._owners:
            self._owners.missed.clear()
        return header

    def _flow(self, number: int, flow: _Flow) -> dict[str, Any]:
        record = {"t": "flow", "id": number, "bytes": flow.bytes, "packets": flow.packets}
        if flow.end is None:
            record["open"] = True
        else:
            record["end"] = round(flow.end, 6)
        return record | self._identity(flow.tuple, flow.time) | self._names(flow.source, flow.target, flow.uid)

    def _identity(self, flow: Tuple, time_: float) -> dict[str, Any]:
        family = socket.AF_INET if len(flow.source) == 4 else socket.AF_INET6
        return {
            "time": round(time_, 6), "proto": _PROTOCOLS.get(flow.proto, str(flow.proto)),
            "source": socket.inet_ntop(family, flow.source), "sport": flow.sport,
            "target": socket.inet_ntop(family, flow.target), "dport": flow.dport,
        }

    def _names(self, source: Owner, target: Owner, uid: int | None) -> dict[str, Any]:
        """Who the ends are; what could not be told is null, with the reason beside it.

        `uid` is what the kernel said of the first packet's socket: it is right even where the socket is gone.
        """
        uid = source.uid if uid is None else uid
        named: dict[str, Any] = {"process": source.path, "target_process": target.path}
        named["user"] = None if uid is None else self._users.get(uid, str(uid))
        if source.why and source is not _NOBODY:
            named["why"] = source.why
        if target.path:
            named["by"] = target.by
        elif target.why and target is not _NOBODY:
            named["target_why"] = target.why
        return named


def line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"
