"""The probe's pace against a model of a machine that can do so much and no more."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass

import pytest

from lab.hosts.attempts import Pace

TIMEOUT_S = 1.5


@dataclass(frozen=True)
class Slow:
    """One host of `among`: it answers so many seconds late, and of its own accord only `rate` times a second."""

    among: int
    late_s: float = 0.0
    rate: float = math.inf


class Machine:
    """Serves `rate` opening attempts a second, one after the other; denied ones cost it nothing and take all of it."""

    def __init__(self, rate: float, slow: Slow | None = None) -> None:
        self.rate, self.slow = rate, slow
        self.free_at = self.slow_free_at = 0.0
        self.random = random.Random(1)

    def ends(self, now: float, denied: bool) -> float:
        if denied:
            return now + TIMEOUT_S
        self.free_at = max(now, self.free_at) + 1 / self.rate
        if self.slow is None or self.random.randrange(self.slow.among):
            return self.free_at
        self.slow_free_at = max(self.free_at, self.slow_free_at) + 1 / self.slow.rate
        return self.slow_free_at + self.slow.late_s


def late(pace: Pace, rate: float, attempts: int, denied: float = 0.0, slow: Slow | None = None) -> tuple[int, float]:
    """How many opening attempts took longer than the timeout, and how long all of them took together.

    As the fleet does, what is told late is told at its timeout, and the window is filled again from three quarters on.
    """
    machine, now = Machine(rate, slow), 0.0
    under_way: list[tuple[float, int, float, bool, bool]] = []
    sent = too_late = 0
    while sent < attempts or under_way:
        room = len(under_way) <= pace.window * 3 // 4
        while room and sent < attempts and len(under_way) < pace.window:
            is_denied = (sent * 7919 % 1000) / 1000 < denied
            ends = machine.ends(now, is_denied)
            is_late = ends - now > TIMEOUT_S + 1e-9
            heapq.heappush(under_way, (min(ends, now + TIMEOUT_S), sent, now, is_denied, is_late))
            sent += 1
        now, index, begun, is_denied, is_late = heapq.heappop(under_way)
        too_late += is_late
        pace.ended(index, sent, not is_denied and not is_late, round((now - begun) * 1e9))
    return too_late, now


class Fixed(Pace):
    def ended(self, index: int, sent: int, opened: bool, took_ns: int) -> None:
        self.window = self._limit


def test_a_slow_machine_is_asked_for_less() -> None:
    assert late(Pace(16_384, TIMEOUT_S), 1500, 50_000)[0] == 0
    assert late(Fixed(16_384, TIMEOUT_S), 1500, 50_000)[0] > 10_000, "the model must show what pacing prevents"


def test_a_fast_machine_is_asked_for_more() -> None:
    pace = Pace(16_384, TIMEOUT_S)
    assert late(pace, 200_000, 100_000)[0] == 0
    assert pace.window == 16_384


def test_silence_does_not_slow_the_probe() -> None:
    """Nine of ten are dropped by a policy: the window grows, since what is allowed is answered at once."""
    pace = Pace(16_384, TIMEOUT_S)
    none_late, took = late(pace, 20_000, 200_000, denied=0.9)
    assert none_late == 0 and pace.window == 16_384
    assert took < 0.5 * 200_000 * 0.9 * TIMEOUT_S / Pace.FIRST


class AnyLate(Pace):
    """A single late one closes the window, whoever it was."""

    FEW = 10**9


@pytest.mark.parametrize(("slow", "limit"), [(Slow(200, 0.7), 2048), (Slow(20, 0.7), 2048), (Slow(20, 0.55), 2048),
                                             (Slow(5, 0.7), 2048), (Slow(5, 0.7), 20_000), (Slow(20, 0.55), 20_000)])
def test_one_host_that_is_late_by_itself_does_not_close_the_window(slow: Slow, limit: int) -> None:
    none_late, took = late(Pace(limit, TIMEOUT_S), 8000, 60_000, 0.3, slow)
    closed_late, closed_took = late(AnyLate(limit, TIMEOUT_S), 8000, 60_000, 0.3, slow)
    assert none_late == closed_late == 0
    assert took < 0.97 * closed_took


@pytest.mark.parametrize("limit", [2048, 20_000])
@pytest.mark.parametrize("slow", [Slow(50, rate=100), Slow(200, rate=20), Slow(200, rate=60), Slow(200, 1.2)])
def test_a_host_near_the_timeout_has_no_more_false_timeouts_for_it(slow: Slow, limit: int) -> None:
    """Its own queue grows with the window: what nears the timeout there closes it, though all others are well."""
    assert late(Pace(limit, TIMEOUT_S), 8000, 60_000, 0.3, slow)[0] <= \
        late(AnyLate(limit, TIMEOUT_S), 8000, 60_000, 0.3, slow)[0]


@pytest.mark.parametrize("limit", [1, 8, 300])
def test_the_limit_holds(limit: int) -> None:
    pace = Pace(limit, TIMEOUT_S)
    for index in range(5000):
        pace.ended(index, index + 1, True, 1000)
        assert pace.window <= limit
    for index in range(5000, 10_000):
        pace.ended(index, index + 1, True, 10**10)
        assert min(limit, Pace.LEAST) <= pace.window <= limit
