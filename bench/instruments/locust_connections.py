"""What the locust process really connected: every TCP connection as its own socket saw it. Needs gevent alone.

Part of `locust_worker`, placed beside it on the client host.
"""

from __future__ import annotations

import errno
import socket as standard_socket
import struct
import time
from collections.abc import Callable
from typing import Any

import gevent.socket
from gevent._socket3 import _wrefsocket

_RESET = struct.pack("ii", 1, 0)  # struct linger: on, for no time
_PENDING = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY)


class Connections:
    """Every TCP connection that this process made. `due()` says when the visit under way was due, 0.0 for none."""

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        self.due: Callable[[], float] = float

    def watch(self) -> None:
        """From now on every gevent socket is watched, and closes with a reset.

        FIN-closing leaves TIME_WAIT behind and falls to a tenth of the rate after some 14,000 connections to one port.
        """
        connections, ended, now = self, self.done.append, time.monotonic

        class Watched(_wrefsocket):  # type: ignore[misc]
            __slots__ = ("due", "error", "first", "last", "peer", "received", "sent", "since")

            def connect_ex(self, address: Any) -> int:
                if not hasattr(self, "since"):
                    self.due, self.peer = connections.due(), address
                    self.sent = self.received = 0
                    self.first = self.last = 0.0
                    self.setsockopt(standard_socket.SOL_SOCKET, standard_socket.SO_LINGER, _RESET)
                    self.since = now()
                self.error = super().connect_ex(address)
                return int(self.error)

            def getsockopt(self, *args: Any) -> Any:
                value = super().getsockopt(*args)
                if value and args == (standard_socket.SOL_SOCKET, standard_socket.SO_ERROR):
                    self.error = value  # how gevent learns that a connect failed
                return value

            def send(self, *args: Any) -> int:
                n: int = super().send(*args)
                self.sent += n
                return n

            def recv(self, *args: Any) -> bytes:
                data: bytes = super().recv(*args)
                self.came(len(data))
                return data

            def recv_into(self, *args: Any) -> int:
                n: int = super().recv_into(*args)
                self.came(n)
                return n

            def came(self, n: int) -> None:
                if n and hasattr(self, "since"):
                    self.last = now()
                    self.first = self.first or self.last
                    self.received += n

            def close(self) -> None:
                if hasattr(self, "since") and self.fileno() >= 0:
                    ended(_connection(self))
                super().close()

        gevent.socket.socket._gevent_sock_class = Watched

    def take(self) -> list[dict[str, Any]]:
        taken = self.done[:]
        self.done.clear()
        return taken


def _connection(sock: Any) -> dict[str, Any]:
    """Times in seconds of CLOCK_MONOTONIC: `start` before the SYN, `first` and `last` bytes received, 0.0 for none."""
    number = 0 if sock.error in (*_PENDING, errno.EISCONN) else sock.error
    local = sock.getsockname()
    return {"source": local[0], "sport": local[1], "target": sock.peer[0], "dport": sock.peer[1],
            "due": sock.due, "start": sock.since, "first": sock.first, "last": sock.last, "end": time.monotonic(),
            "errno": number, "sent": sock.sent, "received": sock.received,
            "outcome": _outcome(sock.error, sock.received)}


def _outcome(number: int, received: int) -> str:
    """The name of lab.model.Outcome; the module itself is not imported here."""
    if number in (0, errno.EISCONN):
        return "OPEN" if received else "BROKEN"
    if number == errno.ECONNREFUSED:
        return "REFUSED"
    if number in (errno.EPERM, errno.EACCES):
        return "DENIED_LOCALLY"
    if number in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return "UNREACHABLE"
    return "TIMED_OUT" if number in (*_PENDING, errno.ETIMEDOUT) else "BROKEN"
