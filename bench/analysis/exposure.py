"""Seconds during which something was so, from samples of whether it was: leak-seconds, outage-seconds. Pure.

A probe tells what was so at one moment and nothing between two of them. So every duration comes as three figures: what
is certain if nothing changed twice between two samples (`low`, `high`), and the trapezoid between them (`seconds`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple


class Sample(NamedTuple):
    """At `time` (seconds, any one clock) it was so, or not."""

    time: float
    so: bool


@dataclass(frozen=True, slots=True)
class Exposure:
    """How long it was so. `low` <= `seconds` <= `high` <= the window."""

    low: float = 0.0
    seconds: float = 0.0
    high: float = 0.0

    def __add__(self, other: Exposure) -> Exposure:
        return Exposure(self.low + other.low, self.seconds + other.seconds, self.high + other.high)


NOTHING = Exposure()


class Settled(NamedTuple):
    """When it ceased to be so, seconds after a moment: at or after `low`, before `high`. None: it never did."""

    low: float
    high: float


def exposure(samples: Sequence[Sample], begin: float, end: float) -> Exposure:
    """How long it was so between `begin` and `end`, from samples in the order of their times.

    What lies before the first sample and after the last was not looked at, and counts as nothing.
    """
    low = middle = high = 0.0
    for one, two in pairwise(samples):
        left, right = max(one.time, begin), min(two.time, end)
        if right <= left:
            continue
        length = right - left
        low += length * (one.so and two.so)
        high += length * (one.so or two.so)
        middle += _trapezoid(one, two, left, right)
    return Exposure(low, min(max(middle, low), high), high)  # sums of rounded numbers may stray by their last digit


def _trapezoid(one: Sample, two: Sample, left: float, right: float) -> float:
    """As if it changed in the middle of the two: the part of left..right on the side where it was so."""
    if one.so == two.so:
        return (right - left) * one.so
    middle = (one.time + two.time) / 2
    before, after = max(0.0, min(right, middle) - left), max(0.0, right - max(left, middle))
    return before if one.so else after


def total(parts: Iterable[Exposure]) -> Exposure:
    """The sum, as of several flows: flow-seconds."""
    return sum(parts, NOTHING)


def any_of(columns: Sequence[Sequence[Sample | None]]) -> list[Sample]:
    """Whether any was so at each tick, at the time of the tick's first sample. A column a flow, all equally long.

    None: not known. A tick is known where one was so, or where all that are known were not and there is one.
    """
    found = []
    for tick in zip(*columns, strict=True):
        known = [sample for sample in tick if sample is not None]
        if known:
            found.append(Sample(min(sample.time for sample in known), any(sample.so for sample in known)))
    return found


def settled(samples: Sequence[Sample], begin: float) -> Settled | None:
    """From when on it was not so any more, after `begin`; None where it was so to the end, or nobody looked.

    Where it never was so, 0 and 0: it ended before anybody could look.
    """
    seen = [sample for sample in samples if sample.time >= begin]
    if not seen or seen[-1].so:
        return None
    last = max((index for index, sample in enumerate(seen) if sample.so), default=-1)
    if last < 0:
        return Settled(0.0, 0.0)
    return Settled(seen[last].time - begin, seen[last + 1].time - begin)


def resolution(samples: Sequence[Sample], begin: float, end: float) -> float | None:
    """The longest time between two samples in a window: what is shorter may have gone unseen. None without any."""
    times = [sample.time for sample in samples if begin <= sample.time <= end]
    return max((two - one for one, two in pairwise(times)), default=None)
