"""Finding the knee of the application's traffic, and measuring at shares of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from bench.analysis.knee import DEFAULT, Knee, Limits, Step, knee, next_rate
from bench.analysis.stats import percentile
from bench.instruments.phases import Phases
from bench.instruments.traffic import TrafficWindow

BUDGET_S = 15.0
STEP = Phases(init_s=0.1, ramp_s=0.25, sustain_s=0.6, down_s=0.0)


class Loads(Protocol):
    """What is asked of the traffic: one window at a rate. `bench.instruments.traffic.Traffic` is one."""

    def run_phases(self, rate_total: float, phases: Phases) -> TrafficWindow: ...


def find(traffic: Loads, limits: Limits = DEFAULT, budget_s: float = BUDGET_S,
         say: Callable[[str], None] = lambda _: None) -> Knee:
    """Search the knee with windows of STEP's length; call it with no enforcer in place.

    It ends within `budget_s` but for the last window, whatever is found. Every step is in the result; store them.
    """
    steps: list[Step] = []
    deadline = time.monotonic() + budget_s - STEP.total_s
    while time.monotonic() < deadline and (rate := next_rate(steps, limits)) is not None:
        say(f"knee: {rate:.0f} requests a second")
        steps.append(step(rate, traffic.run_phases(rate, STEP)))
    return knee(steps, limits)


def step(rate: float, window: TrafficWindow) -> Step:
    """One window as a step of the search. `rate` counts requests, of which a visit may make several."""
    achieved = rate * window.completed / window.visits if window.visits else 0.0
    p50, p90, p99 = (percentile(window.from_intended_us, q) for q in (50, 90, 99))
    return Step(rate=rate, achieved=achieved, n=window.visits, errors=sum(window.errors.values()),
                lag_p99_us=float(np.max([*window.lag_p99_us.values()])), p50_us=p50, p90_us=p90, p99_us=p99,
                cpu=max(window.cpu.values()), spoilt=window.invalid)
