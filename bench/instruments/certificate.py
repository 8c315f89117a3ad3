"""Whether a load window can be believed: each check with its value, its limit and the verdict. INVALID, not wrong.

Pure: facts in, certificate out. The facts are the generator's own (`locust_pacing.facts`), occupancy read on other
hosts (`occupied`), and packets on the wire (`bench.instruments.wire`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lab.backends.base import Testbed

CPU_LIMIT = 0.5  # of one core, over a second: above it a generator's own queue shows as latency of the server
CPU_GAP_S = 1.0  # the CPU is to be sampled this often; locust's own alarm needs 20 s
# How late nine of ten visits are handed out: the generator's own lateness, not the server's. Not p99, which a short
# window takes from one visit: a hypervisor that halts the machine for 20 ms now and then is noise, not a knee.
LAG_LIMIT_US = 10_000.0
FINISHED_SHARE = 0.99
TIME_WAIT_SHARE = 0.2  # of the ephemeral ports: connects slow down to a tenth when half of them wait (measured)
PORT_SHARE = 0.5
CONNTRACK_SHARE = 0.9
CLOCK_DRIFT_PPM, CLOCK_FLOOR_US = 500.0, 100.0  # NTP slews by at most 500 ppm (adjtimex(2)); reading it costs a little
_NO_TABLE = "no connection tracking there"


@dataclass(frozen=True, slots=True)
class Check:
    """One condition: `value` must not be above `limit` (or below, if `at_least`). `where`: the client it is worst on.

    `value` None: could not be taken, and `why` says so; `ok` is then whatever that means for the check.
    """

    name: str
    value: float | None
    limit: float
    unit: str
    ok: bool
    where: str = ""
    why: str = ""
    at_least: bool = False

    @property
    def reason(self) -> str:
        """In words, why this check makes the window INVALID."""
        subject = f"{self.where}: {self.why}" if self.where else self.why
        if self.value is None:
            return subject
        return f"{subject}: {_said(self.value, self.unit)} ({'at least' if self.at_least else 'at most'} " \
               f"{_said(self.limit, self.unit)})"


@dataclass(frozen=True, slots=True)
class Certificate:
    checks: tuple[Check, ...]

    @property
    def valid(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the window is INVALID; empty if it is not."""
        return tuple(f"traffic: {check.reason}" for check in self.checks if not check.ok)

    def and_checks(self, more: Sequence[Check]) -> Certificate:
        """With further checks; one of the same name is replaced."""
        new = {check.name for check in more}
        return replace(self, checks=(*(check for check in self.checks if check.name not in new), *more))


def certify(results: Mapping[str, Mapping[str, Any]]) -> Certificate:
    """The certificate of one window from what each client's worker handed back (see `locust_worker`)."""
    facts = {client: one["generator"] for client, one in results.items()}
    return Certificate((
        _worst("generator cpu", {c: f["cpu"] for c, f in facts.items()}, CPU_LIMIT, "share",
               "the generator used too much of its core for a second"),
        _worst("cpu sampling", {c: f["cpu_gap_s"] for c, f in facts.items()}, CPU_GAP_S, "s",
               "the generator's CPU was not sampled often enough"),
        _worst("send lag p90", {c: f["lag_p90_us"] for c, f in facts.items()}, LAG_LIMIT_US, "us",
               "the generator sent late: p90"),
        _worst("finished", {c: _share(one["finished"], one["visits"]) for c, one in results.items()}, FINISHED_SHARE,
               "share", "visits were not finished in time", at_least=True),
        _worst("TIME_WAIT", {c: _share(f["time_wait"], f["ports"]) for c, f in facts.items()}, TIME_WAIT_SHARE, "share",
               "closed connections hold the client's ports in TIME_WAIT"),
        _worst("ephemeral ports", {c: _share(f["ports_used"], f["ports"]) for c, f in facts.items()}, PORT_SHARE,
               "share", "the client's ephemeral ports are in use"),
        conntrack({c: (f["conntrack"], f["conntrack_max"]) for c, f in facts.items()}),
        _clock(facts)))


def conntrack(tables: Mapping[str, tuple[int | None, int | None]]) -> Check:
    """Connection tracking of several hosts together: the table and its limit are shared by all namespaces."""
    present = {host: (n, most) for host, (n, most) in tables.items() if n is not None and most}
    if not present:
        return Check("conntrack", None, CONNTRACK_SHARE, "share", ok=True, why=_NO_TABLE)
    total, most = sum(n for n, _most in present.values()), min(limit for _n, limit in present.values())
    fullest = max(present, key=lambda host: present[host][0])
    return _check("conntrack", total / most, CONNTRACK_SHARE, "share",
                  f"the table of tracked connections is filling up, {total} of {most}", fullest)


def occupied(testbed: Testbed, hosts: Sequence[str]) -> dict[str, tuple[int | None, int | None]]:
    """(entries, maximum) of connection tracking on each of `hosts`, the router too; None where there is none."""
    found: dict[str, tuple[int | None, int | None]] = {}
    for host in hosts:
        base = "/proc/sys/net/netfilter/nf_conntrack_"
        words = testbed.run(host, ["cat", f"{base}count", f"{base}max"]).stdout.split()
        found[host] = (int(words[0]), int(words[1])) if len(words) == 2 else (None, None)
    return found


def _clock(facts: Mapping[str, Mapping[str, Any]]) -> Check:
    """How far the wall clock moved against the monotonic one: packets are stamped by the former, visits by the latter.

    The limit is of the client where the clock moved furthest beyond what slewing explains.
    """
    moved = {client: abs(f["clock_offset_ns"][1] - f["clock_offset_ns"][0]) / 1e3 for client, f in facts.items()}
    limits = {c: CLOCK_FLOOR_US + CLOCK_DRIFT_PPM * f["clock_seconds"] for c, f in facts.items()}
    worst = max(moved, key=lambda client: moved[client] - limits[client])
    return _check("clock", moved[worst], limits[worst], "us", "the wall clock was stepped within the window", worst)


def _worst(name: str, values: Mapping[str, float], limit: float, unit: str, why: str, *,
           at_least: bool = False) -> Check:
    def badness(client: str) -> float:
        value = values[client]
        return math.inf if not math.isfinite(value) else -value if at_least else value

    worst = max(values, key=badness)
    return _check(name, values[worst], limit, unit, why, worst, at_least=at_least)


def _check(name: str, value: float, limit: float, unit: str, why: str, where: str, *, at_least: bool = False) -> Check:
    ok = math.isfinite(value) and (value >= limit if at_least else value <= limit)
    return Check(name, value, limit, unit, ok, where, why, at_least)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _said(value: float, unit: str) -> str:
    if unit == "share":
        return f"{value:.0%}" if 0.02 < value < 0.98 else f"{value:.1%}"
    return f"{value / 1e3:.1f} ms" if unit == "us" and value >= 1000 else f"{value:.3g} {unit}"
