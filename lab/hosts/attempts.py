"""Attempts on command: what is asked of the built-in services, and what came of it."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.model import Family, Outcome, Proto

Command = Callable[[int, "Attempt"], str]  # token, attempt -> the line that starts it
_OUTCOMES = {str(outcome): outcome for outcome in Outcome}


class Actor(NamedTuple):
    host: str
    process: str
    user: str

    def __str__(self) -> str:
        return f"{self.host}/{self.process}({self.user})"


class Attempt(NamedTuple):
    """One attempt to make: `actor` asks `address` for `port` (0 for icmp)."""

    actor: Actor
    proto: Proto
    family: Family
    address: str
    port: int


class Attempted(NamedTuple):
    """What came of it. Times of CLOCK_MONOTONIC, in seconds; `bytes` is payload in both directions.

    `arrived` is the target's own word. `sport` is the echo identifier for icmp, 0 if none was had. `connect_us` is
    None where nothing connected; `total_us` is None only where the service died or never answered (BROKEN, ESRCH or
    ETIME).
    """

    attempt: Attempt
    outcome: Outcome
    errno: int
    arrived: bool
    arrived_at: float | None
    start: float
    connect_us: float | None
    total_us: float | None
    sport: int
    bytes: int


class Exploited(NamedTuple):
    """An exploit's outcome and, proven by the nonce, whose process answered; empty names if none."""

    attempted: Attempted
    host: str
    process: str
    user: str

    @property
    def owned(self) -> bool:
        return bool(self.host)


@dataclass(frozen=True, slots=True)
class LoopResult:
    """A closed loop's figures. `latencies_us` holds the first 200,000 exchanges in order; `cpu_s` is the client's."""

    n: int
    errors: int
    elapsed_s: float
    cpu_s: float
    latencies_us: NDArray[np.float64]


class Pace:
    """How many attempts may be under way: at most `limit`, fewer while even those that succeed take long.

    A machine that is asked for more than it can do answers late, and late is told as TIMED_OUT: the instrument would
    report its own load. So the window shrinks by a third where of a window's worth one in FEW that opened took longer
    than a third of the timeout, or a single one half of it, and grows by half where of a whole window none took a
    sixth. A host that is late by itself thus holds the window and does not close it. Silence says nothing: it may be a
    policy.
    """

    FIRST, LEAST, FEW = 512, 256, 40

    def __init__(self, limit: int, timeout_s: float) -> None:
        self._limit = max(1, limit)
        self.window = min(self._limit, self.FIRST)
        self._late_ns = int(timeout_s * 1e9 / 3)
        self._since = self._worst_ns = self._late = 0

    def ended(self, index: int, sent: int, opened: bool, took_ns: int) -> None:
        """Attempt `index` ended, after `sent` have been sent; those from before the last change do not count."""
        if not opened or index < self._since:
            return
        self._worst_ns = max(self._worst_ns, took_ns)
        self._late += took_ns > self._late_ns
        if self._late * self.FEW > self.window or self._worst_ns * 2 > self._late_ns * 3:
            self.window = max(min(self._limit, self.LEAST), self.window * 2 // 3)
        elif index - self._since < self.window:
            return
        elif self._worst_ns < self._late_ns // 2:
            self.window = min(self._limit, self.window * 3 // 2 + 1)
        self._since, self._worst_ns, self._late = sent, 0, 0


class Campaign:
    """Attempts under way together: tokens first..first+n-1. Whoever touches it holds the fleet's lock."""

    def __init__(self, attempts: Sequence[Attempt], command: Command, first: int) -> None:
        self.attempts, self.command, self.first = attempts, command, first
        self.results: list[Sequence[str] | int | None] = [None] * len(attempts)  # event fields, or our own errno
        self.arrivals = [0] * len(attempts)
        self.sent = self.ended = 0
        self.pace = Pace(1, 1.0)
        self.progress = time.monotonic()
        self.done = threading.Event()

    def end(self, index: int, result: Sequence[str] | int) -> None:
        if self.results[index] is None:
            self.results[index] = result
            self.ended += 1
            if not isinstance(result, int):
                self.pace.ended(index, self.sent, result[2] == "OPEN", int(result[7]) - int(result[5]))
            if self.ended == len(self.attempts):
                self.done.set()

    def attempted(self, index: int) -> Attempted:
        attempt, result, arrival = self.attempts[index], self.results[index], self.arrivals[index]
        at = arrival / 1e9 if arrival else None
        if result is None or isinstance(result, int):
            return Attempted(attempt, Outcome.BROKEN, result or errno.ETIME, bool(arrival), at, self.progress, None,
                             None, 0, 0)
        start, connect = int(result[5]), int(result[6])
        return Attempted(attempt, _OUTCOMES[result[2]], int(result[3]), bool(arrival), at, start / 1e9,
                         (connect - start) / 1e3 if connect else None, (int(result[7]) - start) / 1e3,
                         int(result[4]), int(result[8]))

    def exploited(self, index: int) -> Exploited:
        """The outcome of one exploit."""
        result = self.results[index]
        if result is None or isinstance(result, int):
            return Exploited(self.attempted(index), "", "", "")
        return Exploited(self.attempted(index), result[9], result[10], result[11])

    def doubtful(self, index: int) -> bool:
        """Whether its arrival may be on its way to us although the attempt has ended."""
        result = self.results[index]
        if self.arrivals[index] or result is None or isinstance(result, int):
            return False
        outcome = _OUTCOMES[result[2]]
        if self.attempts[index].proto == "tcp":  # the record goes out only on an established connection
            return outcome in (Outcome.OPEN, Outcome.BROKEN) and result[6] != "0"
        return outcome != Outcome.DENIED_LOCALLY


@dataclass(frozen=True, slots=True)
class Real:
    """What real programs serve: `ports` as (address, protocol, port), and every host's `addresses` by family.

    There, an attempt is OPEN when it connects (any reply, for a datagram), and its arrival is proved by the capture of
    the handshake's answer on the host (capture.c); datagrams have no such proof.
    """

    ports: frozenset[tuple[str, str, int]] = frozenset()
    addresses: Mapping[tuple[str, Family], str] = field(default_factory=dict)

    def serves(self, attempt: Attempt) -> bool:
        return (attempt.address, attempt.proto, attempt.port) in self.ports

    def host_of(self) -> dict[str, str]:
        return {address: host for (host, _family), address in self.addresses.items()}

    def settle(self, campaign: Campaign, captured: Mapping[tuple[str, int, str, int], int]) -> None:
        """Enter arrivals from what was captured: (local address, port, peer's address, port) → nanoseconds."""
        for index, attempt in enumerate(campaign.attempts):
            result = campaign.results[index]
            if self.serves(attempt) and result is not None and not isinstance(result, int):
                peer = self.addresses[attempt.actor.host, attempt.family]
                at = captured.get((attempt.address, attempt.port, peer, int(result[4])), 0)
                if at >= int(result[5]):  # else it is of an earlier connection from the same port
                    campaign.arrivals[index] = at


NOTHING_REAL = Real()


def probe_command(timeout_s: float, real: Real = NOTHING_REAL) -> Command:
    limit = _milliseconds(timeout_s)

    def command(token: int, a: Attempt) -> str:
        verb = "reach" if real.ports and real.serves(a) else "probe"
        return f"0\t{verb}\t{token}\t{a.proto}\t{a.family}\t{a.address}\t{a.port}\t{limit}\n"

    return command


def exploit_command(timeout_s: float, nonces: Iterable[int]) -> Command:
    """Each exploit takes the next of `nonces`."""
    limit, fresh = _milliseconds(timeout_s), iter(nonces)
    return lambda token, a: f"0\texploit\t{token}\t{a.family}\t{a.address}\t{a.port}\t{limit}\t{next(fresh)}\n"


def _milliseconds(timeout_s: float) -> int:
    return max(1, round(timeout_s * 1000))
