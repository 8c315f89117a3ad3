"""Phases: the rate goes up, stays and goes down as asked, and figures are of sustain alone."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.instruments.locust_pacing import DOWN, RAMP, SUSTAIN, schedule, ticks
from bench.instruments.phases import Phases
from tests.unit.test_traffic import serving, shoppers


def of(plan: list[tuple[int, str]], phase: str) -> np.ndarray:  # type: ignore[type-arg]
    return np.array([at for at, name in plan if name == phase]) / 1e9


def test_the_ramp_is_linear_and_sustain_is_even() -> None:
    plan = schedule(1000.0, Phases(ramp_s=1.0, sustain_s=2.0, down_s=1.0, from_share=0.2).command())
    ramp, sustain, down = (of(plan, phase) for phase in (RAMP, SUSTAIN, DOWN))
    assert (len(ramp), len(sustain), len(down)) == (600, 2000, 600)
    assert np.allclose(np.diff(sustain), 0.001) and sustain[0] == 1.0 and down[0] == 3.0
    for at in (0.0, 0.25, 0.5, 0.75):  # 200 a second at first, 1000 at last
        rate = np.sum((ramp >= at) & (ramp < at + 0.25)) / 0.25
        assert rate == pytest.approx(200 + 800 * (at + 0.125), rel=0.03)
    assert np.allclose(down - 3.0, np.sort(1.0 - ramp)[:600], atol=0.006)  # the ramp backwards


@given(st.floats(1, 5000), st.floats(0, 2), st.floats(0.05, 2), st.floats(0, 2), st.floats(0.05, 1))
def test_a_schedule_is_in_order_and_within_its_phases(rate: float, ramp: float, sustain: float, down: float,
                                                      low: float) -> None:
    phases = Phases(0.1, ramp, sustain, down, low)
    plan = schedule(rate, phases.command())
    times = [at for at, _ in plan]
    assert times == sorted(times)
    assert len(of(plan, SUSTAIN)) == max(1, round(rate * sustain))
    slack = 1.5 / (rate * low)  # a phase may end within an interval
    for name, begin, length in ((RAMP, 0.0, ramp), (SUSTAIN, ramp, sustain), (DOWN, ramp + sustain, down)):
        inside = of(plan, name)
        assert len(inside) == 0 or (inside[0] >= begin - 1e-9 and inside[-1] <= begin + length + slack)


def test_ticks_that_are_overdue_come_at_once_and_none_is_lost() -> None:
    now = time.monotonic_ns()
    due = [now - 5_000_000, now - 4_000_000, now + 20_000_000, now + 20_000_000, now + 30_000_000]
    at = [(tick, time.monotonic_ns()) for tick in ticks(due)]
    assert [tick for tick, _ in at] == [0, 1, 2, 3, 4]
    assert all(seen >= wanted for (_, seen), wanted in zip(at, due, strict=True))


def test_phases_that_make_no_sense_are_refused() -> None:
    for wrong in ({"sustain_s": 0.0}, {"ramp_s": -1.0}, {"from_share": 0.0}, {"from_share": 1.5}):
        with pytest.raises(ValueError, match="write phases of"):
            Phases(**wrong)


def test_a_burst_of_slowness_in_the_ramp_is_not_in_the_figures() -> None:
    """The service takes 60 ms for each of its first 30 answers; where these count, they show."""
    def slow_at_first(number: int) -> None:
        if number <= 30:
            time.sleep(0.06)

    phases = Phases(init_s=0.1, ramp_s=1.2, sustain_s=0.8, down_s=0.2)
    with serving(slow_at_first) as server, shoppers(server) as clients:
        got = clients.run_phases(80, phases)
    with serving(slow_at_first) as server, shoppers(server) as clients:
        counted = clients.run_phases(80, Phases(init_s=0.1, ramp_s=0.0, sustain_s=2.0, down_s=0.0))
    assert (got.visits, len(got.latencies_us), got.sustain_s) == (32, 64, pytest.approx(0.8))
    assert np.median(got.latencies_us) < 60_000 and np.sum(got.latencies_us >= 60_000) <= len(got.latencies_us) / 4
    assert np.sum(counted.latencies_us >= 60_000) >= 30  # a busy machine adds to them
    assert len(got.ttlb_us) == 32 and len(got.truths) > 32 + 10  # connections of the other phases are told too
    times = got.phases["one"]
    assert times.init + 0.0999 <= times.ramp < times.sustain < times.down < times.end
    assert times.sustain - times.ramp == pytest.approx(1.2) and times.down - times.sustain == pytest.approx(0.8)


def test_first_and_last_byte_are_told_apart() -> None:
    """Two answers on one connection, the second after 100 ms: that is the last byte's."""
    def second_is_slow(number: int) -> None:
        if number % 2 == 0:
            time.sleep(0.1)

    with serving(second_is_slow) as server, shoppers(server) as clients:
        got = clients.run_phases(10, Phases(ramp_s=0.0, sustain_s=1.0, down_s=0.0))
    assert len(got.ttfb_us) == len(got.ttlb_us) == 5
    assert np.all(got.ttlb_us - got.ttfb_us >= 100_000)
    assert np.all(got.from_intended_us >= got.ttlb_us)
    assert got.locust["one"]["requests"] == 10
