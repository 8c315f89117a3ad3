"""Is a planted delay found, time after time? Trials on real packets: the liar that waits against the one that does not.

What is planted is the difference between the two: each request segment to the measured port waits, busily, for 200 µs
more on its way through the router. A request-response exchange has one such segment, so it is longer by one wait, and
by what an exchange takes longer after any wait (3 to 7 µs; docs/selftest.md). So a standard of the same size takes the
wait's place in every block, as in weighing by substitution: the service itself waits 200 µs by the clock before it
answers, behind the liar that does not. What the liar's wait takes more or less than the standard is found.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
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
from bench.selftest.plants import ENDS
from lab.backends.base import Enforcement
from lab.hosts.attempts import Actor
from lab.model import Flow

SHORT = Design(crr=0, rr=10, warmup=1, window_s=0.02, bulk=False)
BLOCKS = 10
WITHOUT, WITH, STANDARD = "answers at once", "answers late", "the service waits"


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial, in microseconds: the 95 % interval of the planted wait, and what was planted.

    `longer`: by what the exchange is longer in all, as `labctl run` would tell it; `standard`: under the standard.
    """

    interval: Interval
    planted_us: float
    longer: Interval
    standard: Interval

    @property
    def found(self) -> bool:
        """Whether the planted wait is in the interval."""
        return self.interval.holds(self.planted_us)


def trials(lab: Lab, flow: Flow, planted_us: float, count: int, seed: int = 1) -> Iterator[Trial]:
    """`count` trials along `flow`, each of BLOCKS blocks that visit both liars once, in an order of its own."""
    rng = random.Random(seed)
    lab.alone(*ENDS)
    places = {name: lab.place(name) for name in (WITHOUT, WITH)}
    with closing(Yardstick(datapath.last_cpu())) as yardstick:
        for number in range(count):
            lab.say(f"trial {number + 1} of {count}")
            visits: dict[str, list[Windows]] = {WITHOUT: [], WITH: [], STANDARD: []}
            for _ in range(BLOCKS):
                for name in rng.sample(tuple(visits), len(visits)):
                    with _waiting(lab, flow, planted_us if name == STANDARD else 0.0):
                        visits[name].append(_visit(lab, flow, places.get(name, places[WITHOUT]), yardstick))
            yield judged(visits, planted_us)


@contextmanager
def _waiting(lab: Lab, flow: Flow, wait_us: float) -> Iterator[None]:
    """The asked service waits meanwhile, busily, before each answer."""
    user = lab.scenario.topology.processes[flow.target_process].user
    service = Actor(flow.target, flow.target_process, user)
    lab.testbed.services.request(service, "wait", str(round(wait_us * 1000)))
    try:
        yield
    finally:
        lab.testbed.services.request(service, "wait", "0")


def _visit(lab: Lab, flow: Flow, place: Enforcement, yardstick: Yardstick) -> Windows:
    place.up()
    try:
        series = datapath.measure(lab.testbed, flow, SHORT, yardstick.read).series["rr"]
    finally:
        place.down()
    kept = slice(series.warmup, None)
    return Windows.of(series.p50_us[kept], series.before_us[kept], series.after_us[kept])


def judged(visits: Mapping[str, list[Windows]], planted_us: float) -> Trial:
    """A trial from its visits, three a block. Pure.

    A wait by the clock takes as long on a slow machine as on a fast one, so the machine's speed is taken out of the
    rest of the exchange alone: what each window takes more than the liar without a wait does at that speed.
    """
    curve = learn(reduce(add, visits[WITHOUT]))
    more = {name: [_more(visit, curve) for visit in seen] for name, seen in visits.items()}
    apart = difference(more[WITH], more[STANDARD])
    found = Interval(*(None if end is None else end + planted_us for end in (apart.value, apart.low, apart.high)))
    return Trial(found, planted_us, *(difference(more[name], more[WITHOUT]) for name in (WITH, STANDARD)))


def _more(visit: Windows, curve: Curve | None) -> float | None:
    kept = visit.steady
    if np.count_nonzero(kept) < MIN_STABLE:
        return None
    usual = np.exp(curve.at(visit.reading[kept])) if curve else 0.0
    return float(np.median(visit.values[kept] - usual))
