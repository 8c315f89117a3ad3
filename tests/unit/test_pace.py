"""The probe's pace against a model of a machine that can do so much and no more."""

from __future__ import annotations

import heapq

import pytest

from lab.hosts.attempts import Pace

TIMEOUT_S = 1.5


class Machine:
    """Serves `rate` opening attempts a second, one after the other; denied ones cost it nothing and take all of it."""

    def __init__(self, rate: float) -> None:
        self.rate, self.free_at = rate, 0.0

    def ends(self, now: float, denied: bool) -> float:
        if denied:
            return now + TIMEOUT_S
        self.free_at = max(now, self.free_at) + 1 / self.rate
        return self.free_at


def late(pace: Pace, rate: float, attempts: int, denied: float = 0.0) -> tuple[int, float]:
    """How many opening attempts took longer than the timeout, and how long all of them took together."""
    machine, now = Machine(rate), 0.0
    under_way: list[tuple[float, int, float, bool]] = []
    sent = too_late = 0
    while sent < attempts or under_way:
        while sent < attempts and len(under_way) < pace.window:
            is_denied = (sent * 7919 % 1000) / 1000 < denied
            heapq.heappush(under_way, (machine.ends(now, is_denied), sent, now, is_denied))
            sent += 1
        now, index, begun, is_denied = heapq.heappop(under_way)
        too_late += not is_denied and now - begun > TIMEOUT_S
        pace.ended(index, sent, not is_denied and now - begun <= TIMEOUT_S, round((now - begun) * 1e9))
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


@pytest.mark.parametrize("limit", [1, 8, 300])
def test_the_limit_holds(limit: int) -> None:
    pace = Pace(limit, TIMEOUT_S)
    for index in range(5000):
        pace.ended(index, index + 1, True, 1000)
        assert pace.window <= limit
    for index in range(5000, 10_000):
        pace.ended(index, index + 1, True, 10**10)
        assert min(limit, Pace.LEAST) <= pace.window <= limit
