"""Leak-seconds and outage-seconds: arithmetic on samples, held against square waves whose truth is known."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.analysis.exposure import (
    NOTHING,
    Exposure,
    Sample,
    Settled,
    any_of,
    exposure,
    resolution,
    settled,
    total,
)

gaps = st.floats(0.001, 5.0)


@st.composite
def sampled(draw: st.DrawFn) -> list[Sample]:
    time, found = draw(st.floats(-100, 100)), []
    for gap, so in draw(st.lists(st.tuples(gaps, st.booleans()), min_size=2, max_size=40)):
        time += gap
        found.append(Sample(time, so))
    return found


@st.composite
def waves(draw: st.DrawFn) -> tuple[list[Sample], float]:
    """A square wave whose changes lie further apart than samples do, looked at; and how long it really was so."""
    gap = draw(st.floats(0.01, 1.0))
    lengths = [gap * (1.0 + extra) for extra in draw(st.lists(st.floats(0.1, 10), min_size=1, max_size=8))]
    so, edges = draw(st.booleans()), [0.0]
    for length in lengths:
        edges.append(edges[-1] + length)
    states = [so != bool(index % 2) for index in range(len(lengths))]

    def state(time: float) -> bool:
        return next((s for (_, right), s in zip(pairwise(edges), states, strict=True) if time < right), states[-1])

    times = [0.0]
    while times[-1] < edges[-1]:
        times.append(min(times[-1] + gap * draw(st.floats(0.2, 1.0)), edges[-1]))
    return [Sample(t, state(t)) for t in times], sum(e for e, s in zip(lengths, states, strict=True) if s)


@given(sampled())
def test_bounds_hold_the_estimate_and_never_exceed_the_window(samples: list[Sample]) -> None:
    begin, end = samples[0].time, samples[-1].time
    found = exposure(samples, begin, end)
    assert 0 <= found.low <= found.seconds <= found.high <= end - begin + 1e-6


@given(waves())
def test_the_truth_lies_within_the_bounds_where_nothing_changes_twice_between_two_samples(
        wave: tuple[list[Sample], float]) -> None:
    samples, truth = wave
    found = exposure(samples, samples[0].time, samples[-1].time)
    assert found.low - 1e-9 <= truth <= found.high + 1e-9


@given(sampled(), st.floats(0, 1))
def test_a_window_that_is_cut_in_two_has_the_same_sum(samples: list[Sample], share: float) -> None:
    begin, end = samples[0].time, samples[-1].time
    cut = begin + share * (end - begin)
    parts = total([exposure(samples, begin, cut), exposure(samples, cut, end)])
    whole = exposure(samples, begin, end)
    assert (parts.low, parts.seconds, parts.high) == pytest.approx((whole.low, whole.seconds, whole.high), abs=1e-6)


@given(sampled())
def test_what_is_so_and_what_is_not_make_up_the_window(samples: list[Sample]) -> None:
    begin, end = samples[0].time, samples[-1].time
    other = [Sample(s.time, not s.so) for s in samples]
    both = exposure(samples, begin, end).seconds + exposure(other, begin, end).seconds
    assert both == pytest.approx(end - begin, abs=1e-6)


@given(sampled(), st.floats(-1000, 1000))
def test_it_does_not_matter_when_it_was(samples: list[Sample], by: float) -> None:
    moved = [Sample(s.time + by, s.so) for s in samples]
    one = exposure(samples, samples[0].time, samples[-1].time)
    two = exposure(moved, moved[0].time, moved[-1].time)
    assert one.seconds == pytest.approx(two.seconds, abs=1e-6)


@given(sampled(), st.data())
def test_any_of_several_lasts_as_long_as_the_longest_and_no_longer_than_all_together(
        samples: list[Sample], data: st.DataObject) -> None:
    columns = [samples, *([Sample(s.time, data.draw(st.booleans())) for s in samples] for _ in range(2))]
    begin, end = samples[0].time, samples[-1].time
    each = [exposure(column, begin, end) for column in columns]
    joined = exposure(any_of(columns), begin, end)
    assert max(e.low for e in each) <= joined.low + 1e-6
    assert joined.high <= total(each).high + 1e-6


def test_all_and_none() -> None:
    assert exposure([Sample(t / 10, True) for t in range(11)], 0, 1) == Exposure(*[pytest.approx(1.0)] * 3)
    assert exposure([Sample(t / 10, False) for t in range(11)], 0, 1) == NOTHING
    assert exposure([], 0, 1) == NOTHING


def test_one_sample_that_was_so_is_an_interval_wide_and_may_be_a_moment() -> None:
    found = exposure([Sample(0, False), Sample(0.1, True), Sample(0.2, False)], 0, 1)
    assert found == Exposure(0.0, pytest.approx(0.1), pytest.approx(0.2))


def test_what_was_not_looked_at_is_unknown_to_both_sides() -> None:
    """Longer apart, wider bounds: a gap in the samples does not make a leak shorter."""
    close = exposure([Sample(t, t >= 1) for t in (0.0, 0.9, 1.0, 2.0)], 0, 2)
    wide = exposure([Sample(t, t >= 1) for t in (0.0, 2.0)], 0, 2)
    assert (close.low, close.high) == (pytest.approx(1.0), pytest.approx(1.1))
    assert (wide.low, wide.high) == (0.0, 2.0)


def test_unknown_samples_are_left_out() -> None:
    columns = [[Sample(0, False), None, Sample(2, False)], [Sample(0.1, False), Sample(1.1, True), None]]
    assert any_of(columns) == [Sample(0, False), Sample(1.1, True), Sample(2, False)]
    assert any_of([[None], [None]]) == []


def test_settled() -> None:
    times = [Sample(0.0, True), Sample(0.1, True), Sample(0.2, False), Sample(0.3, False)]
    assert settled(times, 0.0) == Settled(0.1, 0.2)
    assert settled(times, 0.15) == Settled(0.0, 0.0)  # it had ended before anybody looked
    assert settled([*times, Sample(0.4, True)], 0.0) is None
    assert settled([], 0.0) is None
    again = [*times, Sample(0.4, True), Sample(0.5, False)]
    assert settled(again, 0.0) == Settled(pytest.approx(0.4), pytest.approx(0.5))  # the last time counts


def test_resolution_is_the_longest_gap() -> None:
    assert resolution([Sample(t, False) for t in (0, 1, 1.5, 4, 5)], 0, 5) == 2.5
    assert resolution([Sample(1, False)], 0, 5) is None
