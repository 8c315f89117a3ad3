"""The built-in services of all hosts, under command. The line protocol is told in serve.h."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from lab.hosts.attempts import (
    NOTHING_REAL,
    Actor,
    Attempt,
    Attempted,
    Campaign,
    Command,
    Exploited,
    LoopResult,
    Pace,
    Real,
    exploit_command,
    probe_command,
)
from lab.model import Family

__all__ = ["Actor", "Attempt", "Attempted", "Exploited", "Fleet", "LoopResult", "ServiceError"]

WINDOW = 2048  # attempts under way at a time, unless told otherwise
UNHEARD_S = 0.3  # of what is sent past the services: every one says all the while that nothing came
GRACE_S = 10.0  # how long past its own deadline an attempt is waited for before its service is held to be stuck
_CHUNK = 1 << 18


class ServiceError(RuntimeError):
    """A service refused, died or did not answer; the message names it and the command."""


class _Service:
    """One connected service. Whoever sends or changes it holds the fleet's lock."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.actor: Actor | None = None
        self.unread = b""
        self.unsent = bytearray()


class _Waiting:
    """A request whose answer has not come."""

    def __init__(self, service: _Service) -> None:
        self.service = service
        self.done = threading.Event()
        self.good = False
        self.fields: tuple[str, ...] = ("the service ended",)


class Fleet:
    """Every built-in service that connects to the unix socket `path`: one thread reads them all.

    Raises the process's soft limit of open files to the hard one, since each service holds a descriptor.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.troubles: list[tuple[Actor, tuple[str, ...]]] = []  # `e` and `lost` events: what the services could not do
        self._path = Path(path)
        self._lock = threading.RLock()
        self._joined = threading.Condition(self._lock)
        self._services: dict[int, _Service] = {}
        self._actors: dict[Actor, _Service] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._campaigns: list[Campaign] = []
        self._events: list[tuple[Actor, tuple[str, ...]]] = []
        self._host_of: dict[str, str] = {}  # learnt from arrivals
        self._ids = itertools.count(1)
        self._next_token = 1
        self._real = NOTHING_REAL
        self._captured: dict[tuple[str, int, str, int], int] = {}  # what real programs answered: see Real.settle
        self._closing = False
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._path.chmod(0o600)
        self._listener.listen(4096)
        self._listener.setblocking(False)
        self._waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._epoll.register(self._waker, select.EPOLLIN)
        self._thread = threading.Thread(target=self._read_all, name="fleet", daemon=True)
        self._thread.start()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let every service go; each ends when its connection does."""
        if self._closing:
            return
        self._closing = True
        os.eventfd_write(self._waker, 1)
        self._thread.join()
        with self._lock:
            for service in list(self._services.values()):
                self._drop(service)
        self._listener.close()
        self._epoll.close()
        os.close(self._waker)
        self._path.unlink(missing_ok=True)

    @property
    def actors(self) -> frozenset[Actor]:
        """Who is connected now."""
        with self._lock:
            return frozenset(self._actors)

    def await_actors(self, actors: Collection[Actor], timeout_s: float) -> None:
        """Return when all of `actors` are connected; raises ServiceError naming those missing after `timeout_s`."""
        wanted = frozenset(actors)
        with self._joined:
            if not self._joined.wait_for(lambda: wanted <= self._actors.keys(), timeout_s):
                missing = sorted(wanted - self._actors.keys())
                named = ", ".join(map(str, missing[:5]))
                raise ServiceError(f"{len(missing)} services did not start within {timeout_s} s, first {named}")

    # --- commands ---

    def request(self, actor: Actor, verb: str, *args: str, timeout_s: float = 5.0) -> tuple[str, ...]:
        """Give one command and return the fields of its answer. Raises ServiceError."""
        return self.request_all({actor: (verb, *args)}, timeout_s)[actor]

    def request_all(self, commands: Mapping[Actor, Sequence[str]], timeout_s: float) -> dict[Actor, tuple[str, ...]]:
        """Give each actor its command (verb, args...), all at once, and return every answer. Raises ServiceError."""
        answers = self._ask(commands, time.monotonic() + timeout_s)
        bad = [(actor, waiting) for actor, waiting in answers.items() if not waiting.good]
        if bad:
            actor, waiting = bad[0]
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise ServiceError(f"{actor}: {commands[actor][0]}: {' '.join(waiting.fields)}{more}")
        return {actor: waiting.fields for actor, waiting in answers.items()}

    def _ask(self, commands: Mapping[Actor, Sequence[str]], deadline: float) -> dict[Actor, _Waiting]:
        answers: dict[Actor, _Waiting] = {}
        ids = []
        with self._lock:
            for actor, words in commands.items():
                if any("\t" in word or "\n" in word for word in words):
                    raise ValueError(f"{actor}: {words[0]}: an argument holds a tab or a line end")
                service = self._actors.get(actor)
                if service is None:
                    raise ServiceError(f"{actor}: {words[0]}: no such service is connected")
                number = next(self._ids)
                ids.append(number)
                answers[actor] = self._waiting[number] = _Waiting(service)
                self._send(service, "\t".join((str(number), *words)) + "\n")
        for waiting in answers.values():
            if not waiting.done.wait(max(0.0, deadline - time.monotonic())):
                waiting.fields = ("no answer in time",)
        with self._lock:
            for number in ids:
                self._waiting.pop(number, None)
        return answers

    def know_real(self, real: Real) -> None:
        """From now on, attempts at these ports are judged and proved as `Real` says."""
        with self._lock:
            self._real = real
            self._host_of |= real.host_of()

    # --- attempts ---

    def probe(self, attempts: Sequence[Attempt], timeout_s: float, window: int = WINDOW) -> list[Attempted]:
        """Make every attempt, at most `window` at a time (see Pace), in order; one Attempted each, in the same order.

        Returns when all have ended and every arrival that came of them is in. An attempt of a service that is not
        there or dies is BROKEN with ESRCH; one that a stuck service never ends is BROKEN with ETIME.
        """
        campaign = self._carry_out(attempts, probe_command(timeout_s, self._real), timeout_s, window)
        return [campaign.attempted(index) for index in range(len(attempts))]

    def exploit(self, actor: Actor, family: Family, address: str, port: int, nonce: int,
                timeout_s: float) -> Exploited:
        """Send the exploit with `nonce` (64 bits); only a vulnerable service answers it."""
        return self.exploit_all([Attempt(actor, "tcp", family, address, port)], [nonce], timeout_s)[0]

    def exploit_all(self, attempts: Sequence[Attempt], nonces: Sequence[int], timeout_s: float) -> list[Exploited]:
        """`exploit` of each attempt with its nonce, beside each other; in the same order."""
        campaign = self._carry_out(attempts, exploit_command(timeout_s, nonces), timeout_s, WINDOW)
        return [campaign.exploited(index) for index in range(len(attempts))]

    def arrivals(self, attempts: Sequence[Attempt], send: Callable[[int], None]) -> list[bool]:
        """Whether what `send` sends itself, under tokens from its argument on, arrived; silence counts in time."""
        with self._lock:
            actors, campaign = frozenset(self._actors), Campaign(attempts, lambda *_: "", self._next_token)
            campaign.sent = len(attempts)
            self._next_token += len(attempts)
            self._campaigns.append(campaign)
        try:
            send(campaign.first)
            deadline = time.monotonic() + UNHEARD_S
            while not all(campaign.arrivals) and time.monotonic() < deadline:
                self._ask(dict.fromkeys(actors, ("sync",)), deadline + GRACE_S)
        finally:
            with self._lock:
                self._campaigns.remove(campaign)
        return [bool(at) for at in campaign.arrivals]

    def crr(self, actor: Actor, family: Family, address: str, port: int, seconds: float, rate: float = 0) -> LoopResult:
        """Connect, request 64 bytes, read them back, close by reset: for `seconds`, at once again or at `rate`."""
        paced = (f"{rate:.3f}",) if rate else ()
        return self._loop(actor, "crr", (str(family), address, str(port)), seconds, *paced)

    def rr(self, actor: Actor, family: Family, address: str, port: int, seconds: float) -> LoopResult:
        """Request 64 bytes and read them back, on one connection, for `seconds`."""
        return self._loop(actor, "rr", (str(family), address, str(port)), seconds)

    def drain_events(self) -> list[tuple[Actor, tuple[str, ...]]]:
        """The `c` and `h` events since the last call, in the order in which they came, fields as in serve.h."""
        with self._lock:
            events, self._events = self._events, []
        return events

    def _loop(self, actor: Actor, verb: str, target: tuple[str, str, str], seconds: float, *more: str) -> LoopResult:
        n, errors, elapsed, cpu, samples = self.request(actor, verb, *target, f"{seconds:.6f}", *more,
                                                        timeout_s=seconds + GRACE_S)
        latencies = np.fromstring(samples, dtype=np.float64, sep=",") / 10 if samples else np.empty(0)
        return LoopResult(int(n), int(errors), int(elapsed) / 1e9, int(cpu) / 1e9, latencies)

    def _carry_out(self, attempts: Sequence[Attempt], command: Command, timeout_s: float, window: int) -> Campaign:
        with self._lock:
            campaign = Campaign(attempts, command, self._next_token)
            if not attempts:
                return campaign
            self._next_token += len(attempts)
            self._campaigns.append(campaign)
            if len(self._campaigns) == 1:
                self._captured.clear()
            campaign.pace = Pace(window, timeout_s)
            self._feed(campaign)
        try:
            while not campaign.done.wait(1.0):
                if time.monotonic() - campaign.progress > timeout_s + GRACE_S:
                    break
            self._settle(campaign)
        finally:
            with self._lock:
                self._campaigns.remove(campaign)
        return campaign

    def _settle(self, campaign: Campaign) -> None:
        """Have the services at the doubtful targets say that all that came to them has been reported."""
        addresses = {a.address for i, a in enumerate(campaign.attempts)
                     if campaign.doubtful(i) or (self._real.ports and self._real.serves(a))}
        if not addresses:
            return
        with self._lock:
            hosts = {self._host_of.get(address) for address in addresses}
            actors = [actor for actor in self._actors if None in hosts or actor.host in hosts]
        with contextlib.suppress(ServiceError):  # one that has gone since cannot add anything
            self._ask(dict.fromkeys(actors, ("sync",)), time.monotonic() + 2.0)
        with self._lock:
            self._real.settle(campaign, self._captured)

    def _feed(self, campaign: Campaign) -> None:
        """Send attempts until the window is full, each service's in one piece."""
        room = max(0, campaign.pace.window - (campaign.sent - campaign.ended))
        batch = range(campaign.sent, min(campaign.sent + room, len(campaign.attempts)))
        campaign.sent = batch.stop
        lines: dict[_Service, list[str]] = {}
        for index in batch:
            attempt = campaign.attempts[index]
            service = self._actors.get(attempt.actor)
            if service is None:
                campaign.end(index, errno.ESRCH)
            else:
                lines.setdefault(service, []).append(campaign.command(campaign.first + index, attempt))
        for service, texts in lines.items():
            self._send(service, "".join(texts))

    # --- the wire ---

    def _send(self, service: _Service, text: str) -> None:
        data = text.encode()
        if not service.unsent:
            with contextlib.suppress(BlockingIOError, ConnectionError):  # the reading side tells of a lost connection
                data = data[service.sock.send(data):]
            if not data:
                return
            self._epoll.modify(service.fd, select.EPOLLIN | select.EPOLLOUT)
        service.unsent += data

    def _read_all(self) -> None:
        while not self._closing:
            for fd, mask in self._epoll.poll():
                if fd == self._listener.fileno():
                    self._accept()
                elif (service := self._services.get(fd)) is not None:
                    with self._lock:
                        self._serve(service, mask)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._listener.accept()
                _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                if uid != os.geteuid():  # services connect before they take their own user
                    sock.close()
                    continue
                sock.setblocking(False)
                with self._lock:
                    self._services[sock.fileno()] = _Service(sock)
                    self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _serve(self, service: _Service, mask: int) -> None:
        try:
            if mask & select.EPOLLOUT and service.unsent:
                del service.unsent[: service.sock.send(service.unsent)]
                if not service.unsent:
                    self._epoll.modify(service.fd, select.EPOLLIN)
            data = service.sock.recv(_CHUNK) if mask & ~select.EPOLLOUT else None
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if data == b"":
            self._drop(service)
        elif data:
            *lines, service.unread = (service.unread + data).split(b"\n")
            for line in lines:
                self._take(service, line.decode(errors="replace").split("\t"))
            for campaign in self._campaigns:
                # In portions, so that a service gets many attempts by one send.
                if campaign.sent < len(campaign.attempts) and \
                        campaign.sent - campaign.ended <= campaign.pace.window * 3 // 4:
                    self._feed(campaign)

    def _take(self, service: _Service, f: list[str]) -> None:
        kind = f[0]
        if kind in ("p", "x"):
            token = int(f[1])
            for campaign in self._campaigns:
                if 0 <= token - campaign.first < len(campaign.attempts):
                    campaign.progress = time.monotonic()
                    campaign.end(token - campaign.first, f)
        elif kind == "a":
            self._arrived(service, int(f[6]), int(f[7]))
        elif kind == "s":
            self._captured[f[3], int(f[4]), f[5], int(f[6])] = int(f[7])
        elif kind == "=":
            waiting = self._waiting.get(int(f[1]))
            if waiting:
                waiting.good, waiting.fields = f[2] == "ok", tuple(f[3:])
                waiting.done.set()
        elif kind == "hello":
            service.actor = Actor(f[1], f[2], f[3])
            self._actors[service.actor] = service
            self._joined.notify_all()
        elif service.actor:
            (self._events if kind in ("c", "h") else self.troubles).append((service.actor, tuple(f)))

    def _arrived(self, service: _Service, token: int, at_ns: int) -> None:
        for campaign in self._campaigns:
            index = token - campaign.first
            if 0 <= index < len(campaign.attempts) and service.actor:
                campaign.arrivals[index] = campaign.arrivals[index] or at_ns
                self._host_of[campaign.attempts[index].address] = service.actor.host

    def _drop(self, service: _Service) -> None:
        """A service is gone: everything that waits for it ends."""
        self._services.pop(service.fd, None)
        service.sock.close()
        for waiting in self._waiting.values():
            if waiting.service is service:
                waiting.done.set()
        if service.actor is None or self._actors.get(service.actor) is not service:
            return
        del self._actors[service.actor]
        for campaign in self._campaigns:
            for index in range(campaign.sent):
                if campaign.results[index] is None and campaign.attempts[index].actor == service.actor:
                    campaign.end(index, errno.ESRCH)
            self._feed(campaign)
