"""When visits are due, and being there in time: the schedule of the phases, a kernel timer, what the process used.

Part of `locust_worker`, placed beside it on the client host. Needs gevent alone.
"""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import gevent

CPU_SAMPLE_S = 0.25
RAMP, SUSTAIN, DOWN = "ramp", "sustain", "down"
_TIME_WAIT, _LISTEN = "06", "0A"  # include/net/tcp_states.h


def schedule(rate: float, phases: dict[str, float]) -> list[tuple[int, str]]:
    """(nanoseconds after the begin, phase) of every visit, in order.

    `rate` in visits a second; `phases` holds `ramp`, `sustain` and `down` in seconds and `from`, the share of the rate
    that the ramp begins with and the ramp-down ends with (1: both as fast as sustain). Within a phase the rate changes
    linearly; in sustain visits are exactly 1/rate apart. At least one visit is in sustain.
    """
    low, due = phases["from"], []
    begin = 0.0
    for name in (RAMP, SUSTAIN, DOWN):
        length = phases[name]
        first, last = {RAMP: (low, 1.0), SUSTAIN: (1.0, 1.0), DOWN: (1.0, low)}[name]
        n = round(rate * length * (first + last) / 2)
        if name == SUSTAIN:
            n = max(1, n)
        due += [(round(1e9 * (begin + _reached(k / rate, length, first, last))), name) for k in range(n)]
        begin += length
    return due


def _reached(visits: float, length: float, first: float, last: float) -> float:
    """When `visits` (over the full rate) are due in a phase whose rate goes linearly from share `first` to `last`."""
    slope = (last - first) / length if length else 0.0
    if abs(slope) < 1e-12:
        return visits / first
    return (math.sqrt(max(0.0, first * first + 2 * slope * visits)) - first) / slope


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def ticks(due_ns: Sequence[int]) -> Iterator[int]:
    """Yield 0..n-1, each at its time: the kernel's timer, since gevent's own wakes in whole milliseconds.

    `due_ns` in order, CLOCK_MONOTONIC. After a delay the ticks that are due come at once: none is skipped.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    try:
        hub = gevent.get_hub()
        watcher, tick = hub.loop.io(fd, 1), 0
        while tick < len(due_ns):
            spec = _Itimerspec(_Timespec(0, 0), _Timespec(*divmod(due_ns[tick], 10**9)))
            absolute = 1  # TFD_TIMER_ABSTIME; a time that has passed fires at once
            if libc.timerfd_settime(fd, absolute, ctypes.byref(spec), None):
                raise OSError(ctypes.get_errno(), "timerfd_settime")
            hub.wait(watcher)
            os.read(fd, 8)
            now = time.monotonic_ns()
            while tick < len(due_ns) and due_ns[tick] <= now:
                yield tick
                tick += 1
    finally:
        os.close(fd)


class Sampler:
    """This process's own CPU as a share of one core, every quarter of a second."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self.longest_s = 0.0  # that a sample covers
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
            self.longest_s = max(self.longest_s, now[0] - self.last[0])
            self.last = now

    def busiest_second(self) -> float:
        """The highest mean of four samples in a row, or of all if they are fewer; 0 for none."""
        last = max(0, len(self.shares) - 4)
        return max((fmean(self.shares[i: i + 4]) for i in range(last + 1)), default=0.0) if self.shares else 0.0


def clock_offset_ns() -> int:
    """CLOCK_REALTIME less CLOCK_MONOTONIC, from the tightest of several readings."""
    tries = []
    for _ in range(9):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        tries.append((after - before, wall - (before + after) // 2))
    return min(tries)[1]


def occupancy() -> dict[str, int | None]:
    """How full this network namespace is now: TCP ports in use, TIME_WAIT, connection tracking; None: not there.

    /proc/net/tcp{,6} (state, local port), ip_local_port_range, nf_conntrack_count and nf_conntrack_max.
    """
    low, high = (int(n) for n in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports, waiting = set(), 0
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in _lines(table)[1:]:
            fields = line.split()
            port = int(fields[1].rpartition(":")[2], 16)
            waiting += fields[3] == _TIME_WAIT
            if fields[3] != _LISTEN and low <= port <= high:
                ports.add(port)
    return {"time_wait": waiting, "ports_used": len(ports), "ports": high - low + 1,
            "conntrack": _number("/proc/sys/net/netfilter/nf_conntrack_count"),
            "conntrack_max": _number("/proc/sys/net/netfilter/nf_conntrack_max")}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:  # a kernel without IPv6
        return []


def _number(path: str) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines else None


def at(values: Sequence[float], share: float) -> float:
    """The value that `share` of all are equal to or below; 0 for none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else 0.0


def facts(sampler: Sampler, lags_s: Sequence[float], clock_ns: tuple[int, int], seconds: float) -> dict[str, Any]:
    """What the generator says of itself, for the certificate. Times in microseconds, CPU as shares of one core."""
    return {"cpu": round(sampler.busiest_second(), 3), "cpu_samples": [round(share, 3) for share in sampler.shares],
            "cpu_gap_s": round(sampler.longest_s, 3), "lag_p50_us": round(at(lags_s, 0.5) * 1e6, 1),
            "lag_p90_us": round(at(lags_s, 0.9) * 1e6, 1), "lag_p99_us": round(at(lags_s, 0.99) * 1e6, 1),
            "clock_offset_ns": list(clock_ns), "clock_seconds": seconds, **occupancy()}
