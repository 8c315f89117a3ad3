"""The agent itself: one loop over the kernel's events, the hosts' commands and a clock."""

from __future__ import annotations

import os
import select
import time

from enforcers.agent import background

from . import sockets
from .answers import Answers
from .hosts import Hosts
from .kernel import Kernel, unpin
from .lean import suppress
from .place import GOT, AgentError, Place, remove

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .sockets import Socket

_COMMAND_TIMEOUT_S = 30.0
_BEAT_S, _LOOK_S = 1.0, 0.25  # how often the kernel is told that we live, and its rings are looked at unasked
_LEAVING_S = 5.0
_HANDLES = 3


class Service:
    """Set up in the order that loses nothing: attached, then listening. What a dead agent left is taken over."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._kernel = Kernel.open(place)
        self._hosts = Hosts(place, self._kernel)
        self._answers = Answers(self._hosts, self._kernel)
        remove(place.socket)
        self._listener = sockets.listening(place.socket, 256)  # every host of a lab at once

    def run(self) -> None:
        """Serve until the last host has left."""
        poll = select.poll()
        for fd in (*self._kernel.events_fds, self._hosts.watches.fileno(), self._listener.fileno()):
            poll.register(fd, select.POLLIN)
        beat = 0.0
        while True:
            ready = {fd for fd, _ in poll.poll(_LOOK_S * 1000)}
            if self._hosts.watches.fileno() in ready:
                self._hosts.look_again()
            self._hosts.pump()
            if time.monotonic() >= beat:
                self._hosts.tick()
                beat = time.monotonic() + _BEAT_S
            if self._listener.fileno() in ready and self._serve_one():
                return

    def _serve_one(self) -> bool:
        """Answer one client; whether it was the last host. Who goes away spoils nothing but their own answer."""
        with suppress(OSError):
            client = sockets.accepted(self._listener, _COMMAND_TIMEOUT_S)
            data, handles = sockets.receive_with(client, _HANDLES) if sockets.is_ours(client) else (b"", [])
            try:
                while data and not data.endswith(b"\n") and (more := client.recv(65536)):
                    data += more
                if not data.endswith(b"\n"):
                    return False
                verb, host, directory, cookie, *words = data.decode().rstrip("\n").split("\t")
                if len(handles) == _HANDLES and verb != "leave":
                    self._hosts.met(host, directory, int(cookie), *handles)
                    handles = []
                return self._answer(client, verb, host, words)
            except ValueError:
                client.sendall(b"error this agent does not understand that; is it of another version?\n")
            finally:
                client.close()
                for handle in handles:
                    os.close(handle)
        return False

    def _answer(self, client: Socket, verb: str, host: str, words: list[str]) -> bool:
        try:
            said = self._carry_out(verb, host, words)
        except (AgentError, OSError) as err:
            client.sendall(f"error {err}\n".encode())
            return False
        last = verb == "leave" and not self._hosts.any()
        if last:
            self._end()
        client.sendall(b"ok\n")
        for part in said:
            client.sendall(part)
        if verb == "collect":
            sockets.end_sending(client)
            if client.recv(len(GOT)) == GOT:
                self._hosts.delivered(host)
        return last

    def _carry_out(self, verb: str, host: str, words: list[str]) -> Iterable[bytes]:
        if verb == "prepare":
            return self._hosts.prepare(host)
        if verb == "join":
            self._hosts.join(host, words)
        elif verb == "leave":
            self._hosts.leave(host)
        elif verb == "update":
            self._hosts.update(host)
        elif verb == "ready":
            self._hosts.check(host)
        elif verb == "mode":
            self._hosts.mode(host, words)
        elif verb == "collect":
            return self._hosts.collect(host)
        else:
            return self._answers.to(verb, host, words)
        return ()

    def _end(self) -> None:
        """Nobody is served any more: leave nothing."""
        self._kernel.close()
        unpin(self._place.bpf)
        for path in (self._place.socket, self._place.names):  # names are numbers of the kernel's own, which begins anew
            remove(path)


def daemonise(place: Place) -> None:
    """Start the agent in a session of its own; returns when it answers, raises AgentError with what it said."""
    def serve(ready: Callable[[], None]) -> None:
        deadline = time.monotonic() + _LEAVING_S
        while (lock := place.take("lock", block=False)) is None and time.monotonic() < deadline:
            time.sleep(0.02)  # one whose last host has left answers no more, and goes
        if lock is None:
            raise AgentError(f"{place.shared}: another agent is running there; stop it first")
        background.hold(lock)
        service = Service(place)
        ready()
        service.run()

    answer = background.start(serve, place.log, AgentError)
    if answer != background.OK:
        raise AgentError(answer or f"the agent ended before it answered; see {place.log}")
