"""The knee: the highest rate at which an open-loop generator and what it asks keep up. Pure: steps in, decision out.

A step is one short window at one rate. One bad step is not believed: the machine is shared and a hypervisor halts it
now and then. A rate holds as soon as more of its steps were good than bad, and fails when two were bad and not more
were good. Rates double until one fails, then the gap is halved geometrically, so the number of steps is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SHARES = (0.25, 0.5, 0.75)  # of the knee: where latency under load is taken


@dataclass(frozen=True, slots=True)
class Step:
    """What one window at `rate` (offered a second) came to. Latencies from the intended send time, in microseconds.

    `achieved` is what was completed a second, in the unit of `rate`. `spoilt` says why the generator itself did not
    count it (its certificate); `n` is the number of visits.
    """

    rate: float
    achieved: float
    n: int
    errors: int
    lag_p99_us: float
    p50_us: float | None
    p90_us: float | None
    p99_us: float | None
    cpu: float
    spoilt: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """When a step is bad, and how long is searched.

    `achieved_share` of what was offered, less `edge` visits that the ends of a short window cut off. `blowup`: how many
    times the latency (p90) of the slowest rate that held is too much; `slack_us` on top, since that is short.
    """

    lag_p99_us: float = 10_000.0
    achieved_share: float = 0.99
    edge: int = 3
    blowup: float = 4.0
    slack_us: float = 2_000.0
    start: float = 100.0
    lowest: float = 50.0  # below, a short window has too few visits to tell what fails from its ends
    highest: float = 20_000.0
    resolution: float = 1.1  # between a rate that holds and one that fails, where the search ends
    most_steps: int = 14


DEFAULT = Limits()


@dataclass(frozen=True, slots=True)
class Knee:
    """`rate` is the highest that held (None: none did); `failed` the lowest above it that did not, `why` in words.

    `failed` None: the search ended (steps, time or `highest`) before any rate failed, and the knee is at least `rate`.
    """

    rate: float | None
    failed: float | None
    why: tuple[str, ...]
    steps: tuple[Step, ...]

    def points(self, shares: Sequence[float] = SHARES) -> dict[float, float]:
        """The rates to measure at, by share of the knee; empty where there is none."""
        return {share: share * self.rate for share in shares} if self.rate else {}


def faults(step: Step, base_p90_us: float | None, limits: Limits = DEFAULT) -> tuple[str, ...]:
    """Why this step is bad; empty if it is good. `base_p90_us`: latency at the slowest rate that held, if any did."""
    found = list(step.spoilt)
    if step.errors:
        found.append(f"{step.errors} errors")
    if step.lag_p99_us > limits.lag_p99_us:
        found.append(f"sent late: p99 {step.lag_p99_us / 1e3:.1f} ms")
    missing = step.rate - step.achieved
    of_edge = limits.edge / step.n if step.n else 1.0
    if missing > step.rate * (1 - limits.achieved_share + of_edge):
        found.append(f"{step.achieved:.0f} a second achieved of {step.rate:.0f} offered")
    if step.p90_us is None:
        found.append("nothing was answered")
    elif base_p90_us is not None and step.p90_us > limits.blowup * base_p90_us + limits.slack_us:
        found.append(f"p90 {step.p90_us / 1e3:.1f} ms, {step.p90_us / base_p90_us:.0f} times that of a low rate")
    return tuple(found)


def next_rate(steps: Sequence[Step], limits: Limits = DEFAULT) -> float | None:
    """The rate of the next step; None when the knee is known as well as it is to be. Deterministic."""
    if not steps or len(steps) >= limits.most_steps:
        return None if steps else limits.start
    held, failed, undecided = _sorted_out(steps, limits)
    return _from(held, failed, limits) if undecided is None else undecided


def _from(held: set[float], failed: set[float], limits: Limits) -> float | None:
    """Down until something holds, up until something fails, then between the two."""
    if not held:
        lower = min(failed) / 2
        return lower if lower >= limits.lowest else None
    above = [rate for rate in failed if rate > max(held)]
    if not above:
        return min(max(held) * 2, limits.highest) if max(held) < limits.highest else None
    if min(above) / max(held) <= limits.resolution:
        return None
    return math.sqrt(min(above) * max(held))


def knee(steps: Sequence[Step], limits: Limits = DEFAULT) -> Knee:
    """What the steps of a search say, whether it was finished or not."""
    held, failed, _open = _sorted_out(steps, limits)
    best = max(held, default=None)
    above = [rate for rate in failed if best is None or rate > best]
    lowest = min(above, default=None)
    base = _base(steps, held)
    why = [reason for step in steps if step.rate == lowest for reason in faults(step, base, limits)]
    return Knee(best, lowest, tuple(dict.fromkeys(why)), tuple(steps))


def _sorted_out(steps: Sequence[Step], limits: Limits) -> tuple[set[float], set[float], float | None]:
    """The rates that hold, those that fail, and one that is undecided."""
    held: set[float] = set()
    failed: set[float] = set()
    undecided = None
    for rate in sorted({step.rate for step in steps}):  # from the lowest, whose latency is the measure of the others
        base = _base(steps, held)
        verdicts = [bool(faults(step, base, limits)) for step in steps if step.rate == rate]
        bad = sum(verdicts)
        good = len(verdicts) - bad
        if good > bad:
            held.add(rate)
        elif bad >= 2:
            failed.add(rate)
        else:
            undecided = rate
    return held, failed, undecided


def _base(steps: Sequence[Step], held: set[float]) -> float | None:
    """The best p90 of the slowest rate that held: the best, since noise only ever adds."""
    if not held:
        return None
    return min((step.p90_us for step in steps if step.rate == min(held) and step.p90_us is not None), default=None)
