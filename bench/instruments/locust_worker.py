"""Locust inside one client host: a process of its own that sends visits at fixed times and hands back raw figures.

Importing locust patches this process, so nothing else may live in it: it is started as the client's declared
executable and imports no other part of labctl. Of locust it takes the users of a locustfile and the raw
`events.request`, and leaves its pacing (a closed loop), statistics (whole milliseconds) and CPU alarm (after 20 s).

A *visit* is one run of a user's task. Visits start by a kernel timer, at constant intervals, each in a free user; if
none is free the visit waits and its time counts from when it was due, so a stalled server cannot hide its stall.

Protocol, JSON lines. In: `{"start": {"targets": [{"url", "weight"}, …]}}` once, then any number of
`{"run": {"at", "rate", "seconds", "discard"}}`; end of input ends the process. `rate` is in requests a second, so
visits come at rate / requests_per_visit. Out: `{"ready": …}`, for each run `{"truth": …}` for every connection made and
one `{"result": …}`, or `{"error": "…"}` before it ends with status 2. Times are seconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import os

os.environ["GEVENT_RESOLVER"] = "block"  # targets are addresses: a resolver thread would only add its own delay

import argparse
import ctypes
import errno
import gc
import json
import math
import random
import socket as standard_socket
import struct
import sys
import time
import traceback
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import gevent
import gevent.socket
import locust
from gevent._socket3 import _wrefsocket
from gevent.event import Event
from gevent.queue import SimpleQueue
from locust.env import Environment
from locust.exception import InterruptTaskSet, RescheduleTask, StopUser
from locust.util.load_locustfile import load_locustfile

CPU_SAMPLE_S = 0.25
CPU_LIMIT = 0.5  # of one core, over a second: above it a generator's own queue shows as latency of the server
# How late nine of ten visits are handed out: the generator's own lateness, not the server's. Not p99, which a short
# window takes from one visit: a hypervisor that halts the machine for 20 ms now and then is noise, not a knee.
LAG_LIMIT_S = 0.010
GRACE_S = 5.0  # for visits under way when the last was handed out
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, for no time
_PENDING = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY)


# --- what was really connected ----------------------------------------------------------------


class Connections:
    """Every TCP connection that this process made, as its own socket saw it."""

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []

    def watch(self) -> None:
        """From now on every gevent socket is watched, and closes with a reset.

        FIN-closing leaves TIME_WAIT behind and falls to a tenth of the rate after some 14,000 connections to one port.
        """
        ended = self.done.append

        class Watched(_wrefsocket):  # type: ignore[misc]
            __slots__ = ("error", "peer", "received", "sent", "since")

            def connect_ex(self, address: Any) -> int:
                if not hasattr(self, "since"):
                    self.since, self.peer = time.monotonic(), address
                    self.sent = self.received = 0
                    self.setsockopt(standard_socket.SOL_SOCKET, standard_socket.SO_LINGER, _RESET)
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
                self.received += len(data)
                return data

            def recv_into(self, *args: Any) -> int:
                n: int = super().recv_into(*args)
                self.received += n
                return n

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
    number = 0 if sock.error in (*_PENDING, errno.EISCONN) else sock.error
    local = sock.getsockname()
    return {"source": local[0], "sport": local[1], "target": sock.peer[0], "dport": sock.peer[1],
            "start": sock.since, "end": time.monotonic(), "errno": number, "sent": sock.sent,
            "received": sock.received, "outcome": _outcome(sock.error, sock.received)}


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


# --- sending at fixed times -------------------------------------------------------------------


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def _ticks(first_ns: int, interval_ns: int, n: int) -> Iterator[int]:
    """Yield 0..n-1, each at its time: the kernel's timer, since gevent's own wakes in whole milliseconds.

    After a delay the ticks that are due come at once: none is skipped (timerfd_create(2)).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    try:
        spec = _Itimerspec(_Timespec(*divmod(interval_ns, 10**9)), _Timespec(*divmod(first_ns, 10**9)))
        absolute = 1  # TFD_TIMER_ABSTIME
        if libc.timerfd_settime(fd, absolute, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        hub = gevent.get_hub()
        watcher, tick = hub.loop.io(fd, 1), 0
        while tick < n:
            hub.wait(watcher)
            for _ in range(min(int.from_bytes(os.read(fd, 8), sys.byteorder), n - tick)):
                yield tick
                tick += 1
    finally:
        os.close(fd)


@dataclass(slots=True)
class Visit:
    """One visit: when it was due, and what its requests took."""

    due: float
    measured: bool
    end: float = 0.0  # of its last request
    done: bool = False
    times_us: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Generator:
    """A pool of users of one locustfile, and one window of visits at a time."""

    def __init__(self, locustfile: str, targets: list[dict[str, Any]], users: int, seed: int) -> None:
        found, _ = load_locustfile(locustfile)
        if not found:
            raise SystemExit(f"{locustfile}: defines no user; write a class that inherits from locust's FastHttpUser")
        classes = list(found.values())
        options = Namespace(targets=targets, seed=seed)
        self.environment = Environment(user_classes=classes, parsed_options=options, host=targets[0]["url"])
        self.environment.events.request.add_listener(self._on_request)
        self.requests_per_visit = float(getattr(classes[0], "requests_per_visit", 1))
        self.rng = random.Random(seed)
        for one in classes:
            one.host = one.host or targets[0]["url"]  # as locust's own runner does; users may want one to start
        weights = [one.weight for one in classes]
        self.users = [self.rng.choices(classes, weights)[0](self.environment) for _ in range(users)]
        self.tasks: list[list[Callable[[Any], object]]] = [_tasks(user, locustfile) for user in self.users]
        self.under_way: dict[Any, Visit] = {}
        self.left = 0  # visits of this window that are not done
        self.all_done = Event()
        for user in self.users:
            user.on_start()

    def _on_request(self, response_time: float, exception: BaseException | None = None, **_: Any) -> None:
        """locust's event, in the greenlet of the user that made the request; `response_time` in float milliseconds."""
        visit = self.under_way.get(gevent.getcurrent())
        if visit is None:
            return
        visit.end = time.monotonic()
        if exception is None:
            visit.times_us.append(response_time * 1000.0)
        else:
            visit.errors.append(_name(exception))

    def _user(self, index: int, queue: Any) -> None:
        """One user: takes the visit that is longest due, again and again."""
        me = gevent.getcurrent()
        while True:
            visit: Visit = queue.get()
            self.under_way[me] = visit
            try:
                self.rng.choice(self.tasks[index])(self.users[index])
            except (RescheduleTask, InterruptTaskSet, StopUser):
                pass  # control flow of locust: the visit is over
            except Exception as error:  # whatever the locustfile raised is an error of the visit, as in locust
                visit.errors.append(_name(error))
            visit.end, visit.done = visit.end or time.monotonic(), True
            del self.under_way[me]
            self.left -= 1
            if not self.left:
                self.all_done.set()

    def window(self, at: float, rate: float, seconds: float, discard: float) -> dict[str, Any]:
        """Send visits from `at` for discard + seconds; the figures are of those due after the first `discard`."""
        interval_ns = round(1e9 * self.requests_per_visit / rate)
        total = max(1, round((discard + seconds) * 1e9 / interval_ns))
        skipped = round(discard * 1e9 / interval_ns)
        first_ns = max(int(at * 1e9), time.monotonic_ns() + 1_000_000)
        queue = SimpleQueue()
        self.left = total
        self.all_done.clear()
        visits: list[Visit] = []
        lags: list[float] = []
        pool = [gevent.spawn(self._user, index, queue) for index in range(len(self.users))]
        sampler = Sampler()
        sampling = gevent.spawn_later(max(0.0, first_ns / 1e9 + discard - time.monotonic()), sampler.run)
        for tick in _ticks(first_ns, interval_ns, total):
            visit = Visit((first_ns + tick * interval_ns) / 1e9, measured=tick >= skipped)
            visits.append(visit)
            queue.put(visit)
            if visit.measured:
                lags.append(time.monotonic() - visit.due)
        self.all_done.wait(GRACE_S)
        gevent.killall([*pool, sampling], block=True, timeout=1.0)
        sampler.sample()
        self.under_way.clear()
        return _figures([v for v in visits if v.measured], lags, sampler.shares)


def _tasks(user: Any, locustfile: str) -> list[Callable[[Any], object]]:
    tasks = list(user.tasks)
    if not tasks or any(isinstance(task, type) for task in tasks):
        raise SystemExit(f"{locustfile}: {type(user).__name__}: needs tasks that are plain functions; write @task "
                         "above a method (a TaskSet paces itself, which labctl does instead)")
    return tasks


def _name(error: BaseException) -> str:
    """A kind of error, without addresses and times: what is counted."""
    number = getattr(error, "errno", None)
    code = errno.errorcode.get(number, "") if isinstance(number, int) else ""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "code", None)
    return " ".join(str(part) for part in (type(error).__name__, code, status or "") if part)


class Sampler:
    """This process's own CPU as a share of one core, every quarter of a second."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self.last = (time.monotonic(), time.process_time())

    def run(self) -> None:
        self.last = (time.monotonic(), time.process_time())
        while True:
            gevent.sleep(CPU_SAMPLE_S)
            self.sample()

    def sample(self) -> None:
        now = (time.monotonic(), time.process_time())
        if now[0] - self.last[0] >= CPU_SAMPLE_S / 2:
            self.shares.append((now[1] - self.last[1]) / (now[0] - self.last[0]))
            self.last = now


def _figures(visits: list[Visit], lags: list[float], shares: list[float]) -> dict[str, Any]:
    good = [v for v in visits if v.done and not v.errors and v.times_us]
    errors = Counter(name for v in visits for name in v.errors)
    unfinished = sum(not v.done for v in visits)
    busy = _busiest_second(shares)
    invalid = []
    if busy > CPU_LIMIT:
        invalid.append(f"the generator used {busy:.0%} of its core for a second (at most {CPU_LIMIT:.0%})")
    if (late := _at(lags, 0.9)) > LAG_LIMIT_S:
        invalid.append(f"the generator sent late: p90 {late * 1e3:.1f} ms (at most {LAG_LIMIT_S * 1e3:.0f} ms)")
    if unfinished:
        invalid.append(f"{unfinished} of {len(visits)} visits were not finished {GRACE_S:.0f} s after the end")
    return {"visits": len(visits), "finished": len(visits) - unfinished,
            "latencies_us": [round(t, 1) for v in visits for t in v.times_us],
            "from_intended_us": [round((v.end - v.due) * 1e6, 1) for v in good],
            "errors": dict(errors), "lag_p99_us": round(_at(lags, 0.99) * 1e6, 1), "cpu": round(busy, 3),
            "invalid": invalid}


def _at(values: list[float], share: float) -> float:
    """The value that `share` of all are equal to or below; 0 for none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else 0.0


def _busiest_second(shares: list[float]) -> float:
    """The highest mean of four samples in a row, or of all if they are fewer; 0 for none."""
    last = max(0, len(shares) - 4)
    return max((fmean(shares[i: i + 4]) for i in range(last + 1)), default=0.0) if shares else 0.0


# --- the process ------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """Obey standard input until it ends. Standard output is the protocol's alone; prints go to standard error."""
    out = os.fdopen(os.dup(1), "w", buffering=1 << 16)
    os.dup2(2, 1)
    try:
        _serve(_arguments(argv), out)
    except BrokenPipeError:
        return 0  # nobody listens any more
    except (Exception, SystemExit) as error:  # the controller is told why, then the process ends
        traceback.print_exc()
        _say(out, "error", str(error) or type(error).__name__)
        out.flush()
        return 2
    return 0


def _arguments(argv: list[str]) -> Namespace:
    parser = argparse.ArgumentParser(prog="locust_worker")
    parser.add_argument("--locustfile", required=True)
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    return parser.parse_args(argv)


def _serve(options: Namespace, out: Any) -> None:
    connections = Connections()
    connections.watch()
    generator = None
    # Nothing else runs between windows, so a blocking read is right (gevent leaves standard input as it is).
    while line := sys.stdin.buffer.readline():
        command = json.loads(line)
        if "start" in command:
            locustfile = str(Path(options.locustfile).resolve())
            generator = Generator(locustfile, command["start"]["targets"], options.users, options.seed)
            _say(out, "ready", {"pid": os.getpid(), "locust": locust.__version__,
                                "requests_per_visit": generator.requests_per_visit})
        elif generator is not None:
            gc.collect()
            gc.disable()  # a collection in the window would be measured as latency
            result = generator.window(**command["run"])
            gc.enable()
            for one in connections.take():
                _say(out, "truth", one)
            _say(out, "result", result)
        out.flush()


def _say(out: Any, kind: str, value: object) -> None:
    out.write(json.dumps({kind: value}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
