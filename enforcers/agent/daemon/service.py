"""The daemon itself: one loop over its netlink sockets and its command socket."""

from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import suppress

from enforcers.agent import background

from . import settings
from .files import AgentError, Directory, nft, remove, write
from .watch import Watch, line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_PEERCRED = struct.Struct("=iII")  # pid, uid, gid
_COMMAND_TIMEOUT_S = 30.0
_LINES_PER_SEND = 500


class Service:
    """Set up in the order that loses nothing: listening before the rule set that makes events."""

    def __init__(self, directory: Directory, mode: str, takes_over: bool) -> None:
        self._directory = directory
        policy = directory.read_policy()
        if not takes_over:
            # Connections from before are forgotten: under this rule set they are judged like new ones. Those that a
            # rule set of ours has judged carry its mark, as after any change of policy.
            settings.forget()
        if not (takes_over and settings.kept(directory.before)):
            write(directory.before, settings.render(settings.read(tuple(settings.WANTED))))
        settings.write(settings.WANTED)
        self._watch = Watch(policy, attribute=mode == "agent")
        nft("-f", directory.rules)
        remove(directory.socket)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(directory.socket)
        self._listener.listen(8)

    def run(self) -> None:
        """Serve until `stop`."""
        poll = select.poll()
        for sock in (self._watch.events, self._watch.denials, self._listener):
            poll.register(sock, select.POLLIN)
        stopping = more = False
        while not stopping:
            ready = {fd for fd, _ in poll.poll(0 if more else None)}
            more = self._watch.pump()
            if self._listener.fileno() in ready:
                stopping = self._serve_one()
        self._watch.close()

    def _serve_one(self) -> bool:
        """Answer one client; whether it asked to stop. A client that goes away spoils nothing but its own answer."""
        with suppress(OSError), self._listener.accept()[0] as client:
            client.settimeout(_COMMAND_TIMEOUT_S)
            _, uid, _ = _PEERCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
            if uid != os.geteuid():
                return False
            word = client.recv(64).decode(errors="replace").strip()
            return self._answer(word, client)
        return False

    def _answer(self, word: str, client: socket.socket) -> bool:
        try:
            if word == "update":
                self._update()
            elif word not in ("ready", "stop", "collect"):
                raise AgentError(f"unknown command {word!r}")
            client.sendall(b"ok\n")
            if word == "collect":
                self._collect(client)
        except AgentError as err:
            client.sendall(f"error {err}\n".encode())
        return word == "stop"

    def _update(self) -> None:
        policy = self._directory.read_policy()
        nft("-f", self._directory.rules)
        self._watch.configure(policy)

    def _collect(self, client: socket.socket) -> None:
        pending: list[bytes] = []
        for record in self._watch.collect():
            pending.append(line(record))
            if len(pending) == _LINES_PER_SEND:
                client.sendall(b"".join(pending))
                pending.clear()
                self._watch.pump()  # the kernel's buffers fill while a long answer goes out
        client.sendall(b"".join(pending))


def daemonise(directory: Directory, mode: str, takes_over: bool) -> None:
    """Start the daemon in a session of its own; returns when it answers, raises AgentError with what it said."""
    def serve(ready: Callable[[], None]) -> None:
        lock = directory.take_lock()
        if lock is None:
            raise AgentError(f"{directory.path}: another daemon is running there; stop it first")
        background.hold(lock)
        service = Service(directory, mode, takes_over)
        ready()
        service.run()

    answer = background.start(serve, directory.log, AgentError)
    if answer != background.OK:
        raise AgentError(answer or f"the daemon ended before it answered; see {directory.log}")
