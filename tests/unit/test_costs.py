"""From cells to effects: planted effects come out, planted changes of the machine's speed do not."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.random import Generator

from bench.blocks import AA, Cell
from bench.costs import Costs, look_columns
from bench.instruments import datapath
from bench.instruments.datapath import Series, Visited
from bench.report.summary import FIGURES
from lab.backends.base import Usage

ARMS = ("none", "honest", "slow")
SLOW = 1.2
WARMUP, WINDOWS = 2, 16


class Machine:
    """One that goes at either of two speeds, and changes between visits and within them."""

    def __init__(self, rng: Generator, switching: bool = True) -> None:
        self.rng, self.switching, self.fast = rng, switching, True

    def step(self, share: float) -> float:
        """The factor on all it does, after a moment in which it may have changed."""
        if self.switching and self.rng.random() < share:
            self.fast = not self.fast
        return (1.0 if self.fast else 1.6) * math.exp(self.rng.normal(0, 0.01))

    def series(self, base_us: float, factor: float, reading: float = 1.0, cold: float = 1.0) -> Series:
        """Windows of something that takes `base_us` times `factor`; the yardstick's readings times `reading`."""
        speeds = [self.step(0.03) for _ in range(WARMUP + WINDOWS + 1)]
        p50, before, after = [], [], []
        for i, (first, last) in enumerate(pairwise(speeds)):
            middle = (first + last) / 2 * math.exp(self.rng.normal(0, 0.01))
            p50.append(base_us * factor * middle * (cold if i < WARMUP + 3 else 1.0))
            before.append(50 * reading * first)
            after.append(50 * reading * last)
        twice, rate = tuple(2 * x for x in p50), tuple(1e6 / x for x in p50)
        return Series(WARMUP, tuple(p50), twice, rate, tuple(p50), tuple(before), tuple(after))


def run(blocks: int = 28, seed: int = 1, switching: bool = True, reading: float = 1.0, cold: float = 1.0) -> list[Cell]:
    """Cells of a run in which `slow` takes 1.2 times as long; under it the yardstick reads `reading` times as much."""
    rng = np.random.default_rng(seed)
    machine = Machine(rng, switching)
    cells = []
    for block in range(blocks):
        for order, name in enumerate(rng.permutation([*ARMS, AA])):
            machine.step(0.4)
            lied = (SLOW, reading, cold) if name == "slow" else (1.0, 1.0, 1.0)
            loops = {"crr": machine.series(80, *lied), "rr": machine.series(15, *lied)}
            bulk: dict[str, float | None] = {"bulk_bps": 1e10 * math.exp(rng.normal(0, 0.05))} if block % 2 == 0 else {}
            cells.append(Cell(block, str(name), order, loops, bulk, (), (), 3.0, 0.0, 0.0, 10, 0))
    return cells


def test_a_planted_effect_comes_out_through_a_machine_that_changes_its_speed() -> None:
    costs = Costs(run(), ARMS)
    found = costs.effects("crr_p50_us")
    slow, honest = found["slow"], found["honest"]
    assert slow.family_low is not None and slow.family_high is not None and slow.n >= 26
    assert slow.family_low < SLOW < slow.family_high and slow.family_high / slow.family_low < 1.04
    assert honest.family_low is not None and honest.family_high is not None
    assert honest.family_low < 1 < honest.family_high
    assert costs.effects("crr_rate")["slow"].ratio == pytest.approx(1 / SLOW, rel=0.02)
    assert found["none"].ratio == found["none"].low == 1.0
    assert costs.mde("crr_p50_us") == pytest.approx(0.0, abs=0.03)
    assert costs.moved == () and costs.unsteady == ()


def test_without_the_yardstick_the_same_cells_show_far_less() -> None:
    """What the adjusting is for: this fails where the readings are not used."""
    cells = run()
    blind = [replace(cell, series={name: replace(one, before_us=(50.0,) * 18, after_us=(50.0,) * 18)
                                   for name, one in cell.series.items()}) for cell in cells]
    with_it, without = (Costs(some, ARMS).mde("crr_p50_us") for some in (cells, blind))
    assert with_it is not None and without is not None
    assert without > 5 * with_it and without > 0.1


def test_where_the_yardstick_itself_is_moved_by_an_arm_its_figures_stay_as_measured() -> None:
    """An arm that slows the yardstick as much as the datapath would vanish if it were believed."""
    costs = Costs(run(switching=False, reading=SLOW), ARMS)
    assert costs.moved == ("slow",)
    assert costs.effects("crr_p50_us")["slow"].ratio == pytest.approx(SLOW, rel=0.02)
    assert not costs.adjusts("slow", "crr_p50_us") and costs.adjusts("honest", "crr_p50_us")


def test_visits_that_begin_cold_for_longer_than_is_discarded_are_named() -> None:
    assert Costs(run(cold=1.3), ARMS).unsteady == ("slow",)


def test_a_cell_whose_policy_was_not_in_force_does_not_count() -> None:
    cells = [replace(cell, invalid=("before: …",)) if cell.block < 5 and cell.arm == "slow" else cell
             for cell in run()]
    found = Costs(cells, ARMS)
    assert found.adjusted("slow", "crr_p50_us")[:5] == [None] * 5
    assert found.effects("crr_p50_us")["slow"].n == found.effects("crr_p50_us")["honest"].n - 5


def test_blocks_in_which_the_machine_never_kept_its_speed_are_named() -> None:
    """Their figures are left out, so whoever counts the blocks has to learn why."""
    def restless(cell: Cell) -> Cell:
        crr = cell.series["crr"]
        return replace(cell, series={**cell.series, "crr": replace(crr, after_us=tuple(2 * x for x in crr.before_us))})
    cells = [restless(cell) if (cell.block, cell.arm) == (3, "slow") else cell for cell in run(switching=False)]
    costs = Costs(cells, ARMS)
    assert costs.restless("crr_rate") == {"slow": (3,)} and not costs.restless("rr_p50_us")
    assert costs.effects("crr_rate")["slow"].n == len(costs.numbers) - 1
    assert not Costs(run(switching=False), ARMS).restless("crr_rate")


def test_a_figure_of_every_second_block_has_half_the_blocks_and_one_never_taken_has_none() -> None:
    costs = Costs(run(), ARMS)
    bulk = costs.effects("bulk_bps")
    assert bulk["slow"].n == bulk["none"].n == 14
    assert bulk["slow"].low is not None and not costs.adjusts("slow", "bulk_bps")
    assert costs.effects("app_p50_us")["slow"].n == 0 and costs.mde("app_p50_us") is None
    assert set(costs.again) == set(FIGURES) and costs.again["app_p50_us"].ratio is None


def test_none_is_seldom_accused_of_differing_from_itself() -> None:
    """At 5 % for all figures together; a bias in either visit of none is found."""
    accused = [name for seed in range(12) for name, effect in Costs(run(14, seed), ARMS).again.items()
               if effect.p is not None and effect.p <= 0.05]
    assert len(set(accused)) <= 6 and len(accused) <= 6  # figures of one loop hang together: one run may name several
    biased = [replace(cell, figures={name: 1.5 * value if value else None for name, value in cell.figures.items()})
              if cell.arm == AA else cell for cell in run()]
    effect = Costs(biased, ARMS).again["bulk_bps"]
    assert effect.p is not None and effect.p < 0.01


def test_too_few_blocks_say_nothing_and_do_not_fail() -> None:
    for blocks in (0, 1, 2):
        costs = Costs(run(blocks), ARMS)
        if blocks:
            assert costs.effects("crr_p50_us")["slow"].low is None
        assert costs.moved == () and costs.mde("crr_p50_us") is None


def test_what_until_looks_at_is_what_the_report_shows() -> None:
    cells = run(16)
    columns = look_columns(cells, ARMS)
    assert set(columns) == {"honest", "slow"}
    assert np.array_equal(columns["slow"], Costs(cells, ARMS).ratios("slow", "crr_p50_us"), equal_nan=True)


def test_a_window_with_a_stall_is_lost_and_a_visit_of_such_windows_is_not_believed() -> None:
    visited = Visited({"crr": Series(0, (1.0,), (1.0,), (1.0,), (1.0,), (1.0,), (1.0,), (0, 0, 0, 1))}, None)
    assert visited.failed == 0.25

    class Loop:
        n, errors, elapsed_s, latencies_us = 10, 1, 0.05, np.ones(10)

    series = datapath._series(Still(), Loop, 0, 2, lambda: 50.0)  # type: ignore[arg-type]
    assert series.p50_us == series.rate == (None, None) and series.errors == (1, 1)


class Still:
    """A testbed on which nothing uses a processor."""

    def usage(self, memory: bool) -> Usage:
        return Usage({}, {}, {}, "none")
