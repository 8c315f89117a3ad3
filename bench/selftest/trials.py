"""Is a planted delay found, time after time? Trials on real packets: the liar that waits against the one that does not.

What is planted is the difference between the two: each request segment to the measured port waits, busily, for 200 µs
more on its way through the router. A request-response exchange has one such segment, so it is longer by one wait.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from bench.analysis.yardstick import MIN_STABLE, Curve, Windows, learn
from bench.instruments import datapath
from bench.instruments.datapath import Design
from bench.instruments.yardstick import Yardstick
from bench.selftest.intervals import Interval, difference
from bench.selftest.measure import Lab
from bench.selftest.plants import AFTERMATH, ENDS
from lab.backends.base import Enforcement
from lab.model import Flow

SHORT = Design(crr=0, rr=10, warmup=1, window_s=0.02, bulk=False)
BLOCKS = 10
WITHOUT, WITH = "answers at once", "answers late"


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial: the 95 % interval of the difference, in microseconds, and that planted, as the kernel timed it."""

    interval: Interval
    planted_us: float

    @property
    def found(self) -> bool:
        """Whether the planted wait, give or take what it does to the caches, is in the interval."""
        return self.interval.holds(self.planted_us, AFTERMATH)


def trials(lab: Lab, flow: Flow, planted_us: float, count: int, seed: int = 1) -> Iterator[Trial]:
    """`count` trials along `flow`, each of BLOCKS blocks that visit both liars once, in an order of its own."""
    rng = random.Random(seed)
    lab.alone(*ENDS)
    places = {name: lab.place(name) for name in (WITHOUT, WITH)}
    with closing(Yardstick(datapath.last_cpu())) as yardstick:
        for number in range(count):
            lab.say(f"trial {number + 1} of {count}")
            visits: dict[str, list[Windows]] = {WITHOUT: [], WITH: []}
            for _ in range(BLOCKS):
                for name in rng.sample((WITHOUT, WITH), 2):
                    visits[name].append(_visit(lab, flow, places[name], yardstick))
            yield Trial(estimate(visits), planted_us)


def _visit(lab: Lab, flow: Flow, place: Enforcement, yardstick: Yardstick) -> Windows:
    place.up()
    try:
        series = datapath.measure(lab.testbed, flow, SHORT, yardstick.read).series["rr"]
    finally:
        place.down()
    kept = slice(series.warmup, None)
    return Windows.of(series.p50_us[kept], series.before_us[kept], series.after_us[kept])


def estimate(visits: Mapping[str, list[Windows]]) -> Interval:
    """The difference with its 95 % interval over blocks.

    A wait by the clock takes as long on a slow machine as on a fast one, so the machine's speed is taken out of the
    rest of the exchange alone: what each window takes more than the liar without a wait does at that speed.
    """
    curve = learn(reduce(add, visits[WITHOUT]))
    more = {name: [_more(visit, curve) for visit in seen] for name, seen in visits.items()}
    return difference(more[WITH], more[WITHOUT])


def _more(visit: Windows, curve: Curve | None) -> float | None:
    kept = visit.steady
    if np.count_nonzero(kept) < MIN_STABLE:
        return None
    usual = np.exp(curve.at(visit.reading[kept])) if curve else 0.0
    return float(np.median(visit.values[kept] - usual))
