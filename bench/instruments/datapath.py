"""Datapath figures: CRR, RR and bulk between two declared processes, along a flow that the policy allows."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from bench.analysis.stats import percentile
from bench.instruments import as_declared
from lab.backends.base import HostProcess, Testbed
from lab.hosts.attempts import Actor, LoopResult
from lab.model import Flow

BULK_TIMEOUT_S = 30.0
BULK_BYTES = "400M"  # about half a second; iperf3 counts time in whole seconds only
BULK_BITS = 8 * 400 * 2**20
Loop = Callable[[], LoopResult]


class InstrumentError(RuntimeError):
    """An instrument could not measure; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Design:
    """How one visit measures its datapath: windows that count, after `warmup` that do not, each `window_s` long."""

    crr: int = 16
    rr: int = 16
    warmup: int = 2
    window_s: float = 0.05
    bulk: bool = True


@dataclass(frozen=True, slots=True)
class Series:
    """Parallel, one entry a window in order, those of the warm-up included; latencies in microseconds.

    `rate` per second; `cpu_us` per exchange, all hosts and daemons; `before_us`, `after_us` the yardstick's readings.
    None where a window has no exchange, where one failed or was not over 20 ms after the window (`errors`), or where
    its CPU is not known.
    """

    warmup: int  # of these, so many at the start do not count
    p50_us: tuple[float | None, ...]
    p99_us: tuple[float | None, ...]
    rate: tuple[float | None, ...]
    cpu_us: tuple[float | None, ...]
    before_us: tuple[float, ...]
    after_us: tuple[float, ...]
    errors: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Visited:
    """What one visit of an arm measured: loops by name ("crr", "rr") and bulk bits per second."""

    series: Mapping[str, Series]
    bulk_bps: float | None

    @property
    def failed(self) -> float:
        """The share of windows in which an exchange failed. A stall now and then costs its window, not the visit."""
        windows = [errors for one in self.series.values() for errors in one.errors]
        return sum(errors > 0 for errors in windows) / len(windows)


def measure(testbed: Testbed, flow: Flow, design: Design, yardstick: Callable[[], float]) -> Visited:
    """CRR, RR and, if asked for, bulk along `flow`, in that order. Both ends are held on one processor for CRR and RR.

    On one processor the rate is the inverse of the CPU spent on a connection by client, server and all that the
    kernel does between, which is what an enforcer changes; two processors would hide it behind idle time. `yardstick`
    reads that processor's speed (`bench.instruments.yardstick`), before every window and after the last.
    """
    client = Actor(flow.source, flow.process, flow.user)
    address = testbed.topology.hosts[flow.target].address(flow.family)
    series = {}
    with held_on_one(testbed, flow):
        for name, count in (("crr", design.crr), ("rr", design.rr)):
            loop: Loop = partial(getattr(testbed.services, name), client, flow.family, address, flow.port,
                                 design.window_s)
            series[name] = _series(testbed, loop, design.warmup, count, yardstick)
    return Visited(series, bulk(testbed, flow) if design.bulk else None)


@contextlib.contextmanager
def held_on_one(testbed: Testbed, flow: Flow) -> Iterator[None]:
    """Both ends of `flow` on one processor (`last_cpu`) meanwhile."""
    ends = (Actor(flow.source, flow.process, flow.user), _server(testbed, flow))
    _pin(testbed, ends, str(last_cpu()))
    try:
        yield
    finally:
        _pin(testbed, ends, "-1")


def last_cpu() -> int:
    """The processor that both ends are held on, and whose speed is read."""
    return max(os.sched_getaffinity(0))


def _series(testbed: Testbed, loop: Loop, warmup: int, count: int, yardstick: Callable[[], float]) -> Series:
    readings = [yardstick()]
    windows: list[tuple[float | None, float | None, float | None, float | None]] = []
    errors = []
    for _ in range(warmup + count):
        before = _cpu_s(testbed)
        got = loop()
        spent = _cpu_s(testbed) - before
        readings.append(yardstick())
        errors.append(got.errors)
        windows.append(_window(got, spent) if got.n and not got.errors else (None, None, None, None))
    p50, p99, rate, cpu = zip(*windows, strict=True)
    return Series(warmup, p50, p99, rate, cpu, tuple(readings[:-1]), tuple(readings[1:]), tuple(errors))


def _window(got: LoopResult, cpu_s: float) -> tuple[float | None, float | None, float | None, float | None]:
    return (percentile(got.latencies_us, 50), percentile(got.latencies_us, 99), got.n / got.elapsed_s,
            cpu_s * 1e6 / got.n if cpu_s > 0 else None)


def _server(testbed: Testbed, flow: Flow) -> Actor:
    return Actor(flow.target, flow.target_process, testbed.topology.processes[flow.target_process].user)


def _pin(testbed: Testbed, actors: tuple[Actor, ...], cpu: str) -> None:
    for actor in actors:
        testbed.services.request(actor, "pin", cpu)


def _cpu_s(testbed: Testbed) -> float:
    usage = testbed.usage(memory=False)
    return sum(usage.host_cpu_s.values()) + sum(usage.daemon_cpu_s.values())


def bulk(testbed: Testbed, flow: Flow) -> float | None:
    """Received bits per second of one iperf3 stream of BULK_BITS along `flow`; None where iperf3 has no result.

    The service lends its port, so that the policy applies. Both ends are iperf3 at the path, and under the user, of the
    flow's declared processes: whatever an arm tells them by.
    """
    server, port = _server(testbed, flow), str(flow.port)
    address = testbed.topology.hosts[flow.target].address(flow.family)
    iperf3 = as_declared.installed("iperf3", "iperf3")
    here = as_declared.placed(testbed, flow.source, flow.process, iperf3)
    there = as_declared.placed(testbed, flow.target, flow.target_process, iperf3)
    testbed.services.request(server, "unlisten", "tcp", port)
    try:
        listener = testbed.spawn(flow.target, [there, "-s", "-1", "-p", port, "--forceflush"],
                                 process=flow.target_process)
        try:
            _await_listening(listener)
            sender = testbed.spawn(flow.source, [here, "-c", address, "-p", port, "-n", BULK_BYTES, "-J",
                                                 "--connect-timeout", "2000"], process=flow.process)
            said = sender.stdout.read()
            sender.wait(BULK_TIMEOUT_S)
        finally:
            _end(listener)
    finally:
        testbed.services.request(server, "listen", "tcp", port)
    try:
        return float(json.loads(said)["end"]["sum_received"]["bits_per_second"])
    except (ValueError, KeyError):
        return None


def _end(listener: HostProcess) -> None:
    """It ends by itself after one client; only then is its port free again."""
    try:
        listener.wait(3.0)
    except TimeoutError:
        listener.kill()


def _await_listening(listener: HostProcess) -> None:
    for raw in listener.stdout:
        if b"listening" in raw:
            return
    raise InstrumentError("bulk: iperf3 ended before it listened; is the package iperf3 installed?")
