"""The search for the knee, against generators whose knee is known: found, in few steps, in spite of noise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.analysis.knee import DEFAULT, Knee, Limits, Step, faults, knee, next_rate

GOOD = Step(rate=100, achieved=100, n=60, errors=0, lag_p99_us=200, p50_us=800, p90_us=1000, p99_us=2000, cpu=0.2)


def search(ask: Callable[[float], Step], limits: Limits = DEFAULT) -> Knee:
    steps: list[Step] = []
    while (rate := next_rate(steps, limits)) is not None:
        steps.append(ask(rate))
    return knee(steps, limits)


def service(capacity: float, noise: float = 0.0, seed: int = 0) -> Callable[[float], Step]:
    """A generator in front of a service that completes `capacity`; a share `noise` of its windows is spoilt."""
    rng = random.Random(seed)

    def ask(rate: float) -> Step:
        latency = 1000 if rate <= capacity else 300_000 * (rate / capacity - 1) + 20_000
        lag = 200.0 if rng.random() >= noise else 30_000.0
        return replace(GOOD, rate=rate, achieved=min(rate, capacity), n=int(rate * 0.6), p90_us=latency, lag_p99_us=lag)

    return ask


@given(st.floats(60, 15_000))
def test_the_knee_is_within_a_tenth_and_the_steps_are_few(capacity: float) -> None:
    found = search(service(capacity))
    assert found.rate is not None and found.failed is not None
    assert found.rate <= capacity * 1.1 and found.failed >= capacity
    assert len(found.steps) <= DEFAULT.most_steps
    if len(found.steps) < DEFAULT.most_steps:
        assert found.failed / found.rate <= DEFAULT.resolution + 1e-9
    assert capacity / found.rate < 1.5
    assert found.why


def test_a_spoilt_window_is_not_taken_for_the_knee() -> None:
    """A tenth of all windows is spoilt by the machine. Believing each of them loses half of the searches."""
    tries = 300
    found = [search(service(900, 0.1, seed)).rate or 0.0 for seed in range(tries)]
    assert sum(750 < rate <= 920 for rate in found) >= 0.9 * tries

    def naive(seed: int) -> float:
        ask, low, high, rate = service(900, 0.1, seed), 0.0, math.inf, DEFAULT.start
        for _ in range(DEFAULT.most_steps):
            if faults(ask(rate), 1000):
                high = rate
            else:
                low = rate
            rate = low * 2 if math.isinf(high) else (low + high) / 2
        return low

    assert sum(750 < naive(seed) <= 920 for seed in range(tries)) < 0.75 * tries


def test_the_search_is_the_same_every_time() -> None:
    assert search(service(437, 0.2, 5)) == search(service(437, 0.2, 5))


def test_a_generator_that_never_fails_ends_at_the_highest() -> None:
    found = search(service(1e9))
    assert (found.rate, found.failed, found.why) == (DEFAULT.highest, None, ())


def test_nothing_holds() -> None:
    found = search(service(1.0))
    assert found.rate is None and found.points() == {} and found.failed == 50 and found.why


def test_load_points_are_shares_of_the_knee() -> None:
    assert Knee(400, 440, (), ()).points() == {0.25: 100, 0.5: 200, 0.75: 300}


@pytest.mark.parametrize(("change", "why"), [
    ({"lag_p99_us": 12_000.0}, "sent late: p99 12.0 ms"),
    ({"errors": 2}, "2 errors"),
    ({"achieved": 90.0}, "90 a second achieved of 100 offered"),
    ({"p90_us": 7000.0}, "p90 7.0 ms, 7 times that of a low rate"),
    ({"p90_us": None}, "nothing was answered"),
    ({"spoilt": ("the generator used 60 % of its core",)}, "the generator used 60 % of its core"),
])
def test_each_fault_is_named(change: dict[str, object], why: str) -> None:
    assert faults(GOOD, 1000.0) == ()
    assert faults(replace(GOOD, **change), 1000.0) == (why,)  # type: ignore[arg-type]
