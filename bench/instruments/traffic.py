"""Application traffic: one locust process inside each client host, started once, commanded window by window.

The controller stays outside of the hosts and never imports locust. It is given a `spawn(host, argv, env)` that starts a
process in a host's namespaces and cgroup, so it serves any backend.
"""

from __future__ import annotations

import json
import queue
import sys
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.instruments.certificate import Certificate, certify
from bench.instruments.phases import Phases, PhaseTimes, phase_times
from lab.model import Flow, Topology, Truth

WORKER = Path(__file__).with_name("locust_worker.py")
BESIDE_WORKER = tuple(WORKER.with_name(f"locust_{part}.py") for part in ("connections", "pacing"))
START_TIMEOUT_S = 30.0  # importing locust takes about a second of CPU, in every client at once
GRACE_S = 10.0  # beyond the window: the worker's own grace for visits under way, and handing over its figures
LEAD_S = 0.1  # between the command and the first visit, so that all workers have it
USERS = 64  # visits that one client can have under way
ENDED = "ended"  # the reader's word for the end of a worker's output


class Piped(Protocol):
    """What the controller asks of a process on a host: binary pipes, and a way to end it."""

    @property
    def stdin(self) -> IO[bytes]: ...
    @property
    def stdout(self) -> IO[bytes]: ...
    def kill(self) -> None: ...


Spawn = Callable[[str, Sequence[str], Mapping[str, str]], Piped]


class TrafficError(RuntimeError):
    """A worker could not be started, died or fell silent; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a client asks: the base URL of a service, and how often relative to the others (replay only)."""

    url: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Connection:
    """One TCP connection as its own socket saw it; seconds of CLOCK_MONOTONIC, 0.0 for what did not happen.

    `due`: its visit's. `start`: before the SYN. `first`, `last`: bytes received.
    """

    client: str
    source: str
    sport: int
    target: str
    dport: int
    due: float
    start: float
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class TrafficWindow:
    """One window of all clients together; figures of what was due in its sustain phase.

    `from_intended_us`: a whole visit without errors, from when it was due to the end of its last request, the figure to
    report. `latencies_us`: each request as locust timed it. `ttfb_us`, `ttlb_us`: each connection that was answered,
    from before its SYN to its first and its last byte (RFC 9411's TTFB and TTLB). `cpu`: the highest share of one core
    over a second, by client. `truths`: every connection made, those of the other phases too; `arrived` means that an
    answer came. `completed`: visits that ended within sustain, of whichever phase. `locust`: its own statistics,
    by client.
    """

    latencies_us: NDArray[np.float64]
    from_intended_us: NDArray[np.float64]
    errors: Mapping[str, int]
    certificate: Certificate
    cpu: Mapping[str, float]
    lag_p99_us: Mapping[str, float]
    visits: int
    finished: int
    completed: int
    sustain_s: float
    truths: tuple[Truth, ...]
    connections: tuple[Connection, ...]
    phases: Mapping[str, PhaseTimes]
    ttfb_us: NDArray[np.float64]
    ttlb_us: NDArray[np.float64]
    clock_offset_s: float  # CLOCK_REALTIME less CLOCK_MONOTONIC, in the middle of the window
    locust: Mapping[str, Mapping[str, float]]

    @property
    def invalid(self) -> tuple[str, ...]:
        """Why the window does not count; empty if it does."""
        return self.certificate.reasons


def targets(flows: Iterable[Flow], topology: Topology, weights: Mapping[Flow, int] | None = None) -> tuple[Target, ...]:
    """The URLs that TCP flows lead to, IPv4 and IPv6 alternating while both last; a flow not in `weights` counts 1."""
    by_family: dict[int, dict[str, int]] = {4: {}, 6: {}}
    for flow in flows:
        if flow.proto == "tcp":
            url = base_url(topology.hosts[flow.target].address(flow.family), flow.port)
            known = by_family[flow.family]
            known[url] = known.get(url, 0) + (weights or {}).get(flow, 1)
    four, six = ([Target(url, weight) for url, weight in known.items()] for known in by_family.values())
    pairs = min(len(four), len(six))
    mixed = [one for pair in zip(four, six, strict=False) for one in pair]
    return (*mixed, *four[pairs:], *six[pairs:])


def base_url(address: str, port: int) -> str:
    """http://address:port, with the brackets that IPv6 needs (RFC 3986)."""
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def interpreter() -> Path:
    """The Python to copy to the path of the client's declared executable: the one that runs this, links resolved."""
    return Path(sys.executable).resolve()


def worker_environment() -> dict[str, str]:
    """What a copied interpreter needs to find its library and this environment's packages."""
    packages = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    return {"PYTHONHOME": sys.base_prefix, "PYTHONPATH": ":".join(packages), "PYTHONSAFEPATH": "1",
            "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}


class Traffic:
    """The clients' locust processes. A context manager: entered, all are ready; left, all have ended.

    Each is started as the path of `process`, which must be a copy of `interpreter()` there. `per_client` says what each
    client asks (by host). Raises TrafficError.
    """

    def __init__(self, spawn: Spawn, topology: Topology, *, process: str, locustfile: str,
                 per_client: Mapping[str, Sequence[Target]], users: int = USERS, seed: int = 0,
                 kind: str = "traffic", worker: str = str(WORKER)) -> None:
        empty = [client for client, wanted in per_client.items() if not wanted]
        if empty or not per_client:
            raise TrafficError(f"traffic: {', '.join(empty) or 'no client'}: nothing to ask; the policy must allow its "
                               "clients some tcp service")
        self.spawn, self.topology, self.process = spawn, topology, process
        self.locustfile, self.per_client = locustfile, per_client
        self.users, self.seed, self.kind, self.worker = users, seed, kind, worker
        self.workers: list[_Worker] = []
        self.host_of = {host.address(family): host.name for host in topology.hosts.values() for family in (4, 6)}

    def __enter__(self) -> Traffic:
        try:
            for index, (client, wanted) in enumerate(self.per_client.items()):
                worker = _Worker(client, self.spawn(client, self._argv(index), worker_environment()))
                self.workers.append(worker)
                worker.send({"start": {"targets": [{"url": t.url, "weight": t.weight} for t in wanted]}})
            deadline = time.monotonic() + START_TIMEOUT_S
            for worker in self.workers:
                worker.await_one("ready", deadline)
        except BaseException:
            self._end()
            raise
        return self

    def _argv(self, index: int) -> list[str]:
        return [self.topology.processes[self.process].path, self.worker, "--locustfile", self.locustfile,
                "--users", str(self.users), "--seed", str(self.seed + index)]

    def run(self, rate_total: float, seconds: float, discard_s: float = 0.5) -> TrafficWindow:
        """`rate_total` requests a second from all clients together; figures from `seconds` after the ramp `discard_s`.

        The ramp is as fast as the rest, and there is no ramp-down. `run_phases` says the rest.
        """
        return self.run_phases(rate_total, Phases(LEAD_S, discard_s, seconds, 0.0, from_share=1.0))

    def run_phases(self, rate_total: float, phases: Phases) -> TrafficWindow:
        """One window at `rate_total` requests a second from all clients together, in these phases.

        The clients send in turn: each has an equal share of the rate and starts one interval after the one before.
        """
        rate = rate_total / len(self.workers)
        commanded = time.monotonic()
        begin = commanded + max(LEAD_S, phases.init_s)
        for index, worker in enumerate(self.workers):
            worker.send({"run": {"at": begin + index / rate_total, "rate": rate, "phases": phases.command()}})
        deadline = begin + phases.total_s + GRACE_S
        results = {worker.client: worker.await_one("result", deadline) for worker in self.workers}
        raw = [(worker.client, one) for worker in self.workers for one in worker.take_truths()]
        truths = [self._truth(client, one) for client, one in raw]
        return _merged(results, truths, [_connection(client, one) for client, one in raw], commanded)

    def _truth(self, client: str, one: Mapping[str, Any]) -> Truth:
        process = self.topology.processes[self.process]
        target = self.host_of.get(one["target"], one["target"])
        return Truth(self.kind, client, self.process, process.path, process.user, target, "tcp", one["source"],
                     one["sport"], one["target"], one["dport"], one["start"], one["end"], one["sent"] + one["received"],
                     one["outcome"], one["received"] > 0)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        for worker in self.workers:
            worker.end()
        self.workers = []


def arrivals(truths: Iterable[Truth], seen: Iterable[tuple[str, int, str, int]]) -> list[Truth]:
    """The truths with `arrived` also where the service itself saw the connection.

    `seen`: (source address, source port, target host, target port) of every connection that services report.
    """
    known = set(seen)
    return [replace(t, arrived=t.arrived or (t.source_address, t.sport, t.target, t.dport) in known) for t in truths]


def _connection(client: str, one: Mapping[str, Any]) -> Connection:
    return Connection(client, one["source"], one["sport"], one["target"], one["dport"], one["due"], one["start"],
                      one["first"], one["last"])


def _merged(results: Mapping[str, Mapping[str, Any]], truths: Sequence[Truth], connections: Sequence[Connection],
            commanded: float) -> TrafficWindow:
    errors: Counter[str] = Counter()
    for one in results.values():
        errors.update(one["errors"])
    phases = {client: phase_times(commanded, one["phases"]) for client, one in results.items()}
    answered = [c for c in connections if c.first and phases[c.client].within_sustain(c.due)]
    offsets = [ns for one in results.values() for ns in one["generator"]["clock_offset_ns"]]
    return TrafficWindow(
        latencies_us=_joined(results, "latencies_us"), from_intended_us=_joined(results, "from_intended_us"),
        errors=dict(errors), certificate=certify(results),
        cpu={client: one["generator"]["cpu"] for client, one in results.items()},
        lag_p99_us={client: one["generator"]["lag_p99_us"] for client, one in results.items()},
        visits=sum(one["visits"] for one in results.values()),
        finished=sum(one["finished"] for one in results.values()),
        completed=sum(one["completed"] for one in results.values()),
        sustain_s=max(one["sustain"] for one in results.values()), truths=tuple(truths),
        connections=tuple(connections), phases=phases,
        ttfb_us=np.array([(c.first - c.start) * 1e6 for c in answered]),
        ttlb_us=np.array([(c.last - c.start) * 1e6 for c in answered]),
        clock_offset_s=sum(offsets) / len(offsets) / 1e9,
        locust={client: one["locust"] for client, one in results.items()})


def _joined(results: Mapping[str, Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(one[name], dtype=np.float64) for one in results.values()])


class _Worker:
    """One client's process: a thread reads its lines, so that a full pipe never holds it up."""

    def __init__(self, client: str, process: Piped) -> None:
        self.client, self.process = client, process
        self.lines: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.truths: list[Mapping[str, Any]] = []
        self.reader = threading.Thread(target=self._read, name=f"traffic {client}", daemon=True)
        self.reader.start()

    def _read(self) -> None:
        try:
            for raw in self.process.stdout:
                ((kind, value),) = json.loads(raw).items()
                self.lines.put((kind, value))
        except (OSError, ValueError) as error:  # a closed pipe, or a line that is not the protocol's
            self.lines.put(("error", f"its output could not be read: {error}"))
        self.lines.put((ENDED, None))

    def send(self, command: Mapping[str, Any]) -> None:
        try:
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            self.process.stdin.flush()
        except (OSError, ValueError):
            self._fail(self._last_words())

    def await_one(self, wanted: str, deadline: float) -> Any:
        """The next line of this kind; truths are put aside. Raises TrafficError if it does not come by the deadline."""
        while True:
            try:
                kind, value = self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self._fail(f"did not answer in time (waiting for its '{wanted}')")
            if kind == wanted:
                return value
            if kind == "truth":
                self.truths.append(value)
            elif kind == "error":
                self._fail(str(value))
            elif kind == ENDED:
                self._fail("its process ended by itself")

    def _last_words(self) -> str:
        """What it said before its input closed."""
        try:
            while True:
                kind, value = self.lines.get(timeout=1.0)
                if kind == "error":
                    return str(value)
                if kind == ENDED:
                    break
        except queue.Empty:
            pass  # it said nothing
        return "its process ended by itself"

    def _fail(self, why: str) -> None:
        raise TrafficError(f"traffic: the locust process on {self.client}: {why}")

    def take_truths(self) -> list[Mapping[str, Any]]:
        taken, self.truths = self.truths, []
        return taken

    def end(self) -> None:
        """End it: it goes when its input closes, and is killed if it does not."""
        with suppress(OSError):  # it was gone already
            self.process.stdin.close()
        self.process.kill()
        self.reader.join(timeout=5.0)
