"""From the cells of the cost blocks to effects: machine's speed taken out, paired within blocks. Pure.

How, and why: docs/measuring.md. Nothing here knows where a cell came from: a report is recomputed from raw cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add

import numpy as np

from bench.analysis import bootstrap, warmup, yardstick
from bench.analysis.bootstrap import CONFIDENCE, NOTHING, Effect, Floats
from bench.analysis.yardstick import Curve, Windows
from bench.blocks import AA, Cell
from bench.instruments.datapath import Series
from bench.report.summary import FIGURES, FigureName

BASELINE = "none"
# Figures of the loops: which loop, which of its arrays. The others are measured once a visit.
WINDOWED: Mapping[FigureName, tuple[str, str]] = {
    "crr_rate": ("crr", "rate"), "crr_p50_us": ("crr", "p50_us"), "crr_p99_us": ("crr", "p99_us"),
    "rr_p50_us": ("rr", "p50_us"), "rr_p99_us": ("rr", "p99_us"), "cpu_per_conn_us": ("crr", "cpu_us")}
MOVED = 0.01  # a yardstick off by less biases an effect by less than any run can detect
Blocks = list[float | None]


@dataclass(frozen=True)
class Costs:
    """All cells of a run, judged. `confidence`: of every interval. Raises nothing: what cannot be said is None."""

    cells: Sequence[Cell]
    arms: tuple[str, ...]
    confidence: float = CONFIDENCE

    @cached_property
    def numbers(self) -> list[int]:
        """The blocks there are, in order."""
        return sorted({cell.block for cell in self.cells})

    @cached_property
    def moved(self) -> tuple[str, ...]:
        """Arms under which the yardstick itself reads otherwise than under `none`: their figures stay as measured."""
        base = self._readings(BASELINE)
        found = {name: self._readings(name) for name in self.arms if name != BASELINE}
        moved = yardstick.moved(found, base) if found and self.numbers else {}
        return tuple(name for name, effect in moved.items()
                     if effect.ratio is not None and abs(math.log(effect.ratio)) > math.log1p(MOVED))

    @cached_property
    def unsteady(self) -> tuple[str, ...]:
        """Arms whose visits were not yet steady when the windows that count began."""
        return tuple(name for name in self.arms if any(self._late(name, loop) for loop in ("crr", "rr")))

    def restless(self, figure: FigureName) -> dict[str, tuple[int, ...]]:
        """By arm, the blocks that do not count: the machine changed its speed within all windows but one at most."""
        pairs = {name: zip(self.numbers, self.raw(name, figure), self.adjusted(name, figure), strict=True)
                 for name in self.arms if self.adjusts(name, figure)}
        found = {name: tuple(block for block, raw, kept in blocks if raw is not None and kept is None)
                 for name, blocks in pairs.items()}
        return {name: blocks for name, blocks in found.items() if blocks}

    def raw(self, name: str, figure: FigureName) -> Blocks:
        """One value a block as measured, None where it was not, or where the policy was not in force."""
        return self._over_blocks(name, lambda cell: _as_measured(cell, figure))

    def adjusted(self, name: str, figure: FigureName) -> Blocks:
        """The same at the run's usual speed of the machine; as measured where there is nothing to adjust by."""
        curve = self._curves.get(figure)
        if curve is None:
            return self.raw(name, figure)
        return self._over_blocks(name, lambda cell: yardstick.visit(_windows(cell, figure), curve))

    def ratios(self, name: str, figure: FigureName) -> Floats:
        """log(arm / none), one a block in order, NaN where either is missing."""
        return self._ratios(name, figure, self.adjusted if self.adjusts(name, figure) else self.raw)

    def shares(self, name: str, figure: FigureName) -> tuple[float | None, ...]:
        """arm / none, one a block in order, None where either is missing."""
        return tuple(None if math.isnan(log) else math.exp(log) for log in self.ratios(name, figure))

    def adjusts(self, name: str, figure: FigureName) -> bool:
        """Whether this arm's figure is told relative to the machine's speed."""
        return name not in self.moved and self._curves.get(figure) is not None

    def effects(self, figure: FigureName) -> dict[str, Effect]:
        """Every arm against `none`; together they are the family that `family_low`, `family_high` and `p` mean."""
        columns = {name: self.ratios(name, figure) for name in self.arms if name != BASELINE}
        taken = np.array([value is not None for value in self.raw(BASELINE, figure)], dtype=np.bool_)
        if not taken.any():
            return dict.fromkeys(self.arms, NOTHING)
        found = bootstrap.compare({name: logs[taken] for name, logs in columns.items()}, self.confidence)
        return {BASELINE: Effect(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, int(taken.sum())), **found}

    @cached_property
    def again(self) -> dict[FigureName, Effect]:
        """`none` against itself, by figure; here the family is all figures of the run."""
        return dict(zip(FIGURES, bootstrap.compare({f: self.ratios(AA, f) for f in FIGURES}).values(), strict=True))

    def plain(self, name: str, figure: FigureName) -> float | None:
        """The ratio without any adjustment, estimated likewise."""
        logs = self._ratios(name, figure, self.raw)
        return bootstrap.compare({name: logs})[name].ratio

    def mde(self, figure: FigureName) -> float | None:
        return bootstrap.mde(self.ratios(AA, figure))

    # --- parts ---

    @cached_property
    def _curves(self) -> dict[FigureName, Curve | None]:
        """What `none` costs at each speed of the machine, from all windows of both its visits in every block."""
        mine = [cell for cell in self.cells if cell.arm in (BASELINE, AA) and not cell.invalid and cell.series]
        if not mine:
            return {}
        return {figure: yardstick.learn(reduce(add, (_windows(cell, figure) for cell in mine))) for figure in WINDOWED}

    def _ratios(self, name: str, figure: FigureName, blocks: Callable[[str, FigureName], Blocks]) -> Floats:
        return bootstrap.log_ratios(blocks(name, figure), blocks(BASELINE, figure))

    def _over_blocks(self, name: str, value: Callable[[Cell], float | None]) -> Blocks:
        found = {cell.block: value(cell) for cell in self.cells if cell.arm == name and not cell.invalid}
        return [found.get(number) for number in self.numbers]

    def _readings(self, name: str) -> Floats:
        """log of the yardstick, one a block: the mean over the visit's windows."""
        found = self._over_blocks(name, lambda cell: _reading(cell.series))
        return np.array([np.nan if one is None else one for one in found])

    def _late(self, name: str, loop: str) -> bool:
        figure: FigureName = "crr_p50_us" if loop == "crr" else "rr_p50_us"
        curve = self._curves.get(figure) if name not in self.moved else None
        visits = [_relative(cell.series[loop], curve) for cell in self.cells
                  if cell.arm == name and not cell.invalid and loop in cell.series]
        whole = [visit for visit in visits if np.isfinite(visit).all()]
        if len(whole) < bootstrap.MIN_BLOCKS or len(whole[0]) < 4:
            return False
        discard = warmup.unsteady(np.exp(whole))
        return discard is None or discard > max(series[loop].warmup for series in
                                                (cell.series for cell in self.cells) if loop in series)


def _windows(cell: Cell, figure: FigureName) -> Windows:
    """The windows of a visit that count, for one figure; none where the cell has no such loop."""
    loop, field = WINDOWED[figure]
    series = cell.series.get(loop)
    if series is None:
        return Windows.of((), (), ())
    kept = slice(series.warmup, None)
    return Windows.of(getattr(series, field)[kept], series.before_us[kept], series.after_us[kept])


def _as_measured(cell: Cell, figure: FigureName) -> float | None:
    if figure in WINDOWED:
        return yardstick.visit(_windows(cell, figure), None)
    return cell.figures.get(figure)


def _reading(series: Mapping[str, Series]) -> float | None:
    readings = [reading for one in series.values() for reading in one.before_us[one.warmup:]]
    return float(np.mean(np.log(readings))) if readings else None


def _relative(series: Series, curve: Curve | None) -> Floats:
    """log of the p50 of every window, those of the warm-up too, relative to `none` at that speed of the machine."""
    windows = Windows.of(series.p50_us, series.before_us, series.after_us)
    logs: Floats = np.log(windows.values)
    return logs - curve.at(windows.reading) if curve is not None else logs


def look_columns(cells: Sequence[Cell], arms: tuple[str, ...], figure: FigureName = "crr_p50_us") -> dict[str, Floats]:
    """What `--until` looks at: every arm's block log-ratios of one figure, without arms that were never measured."""
    costs = Costs(cells, arms)
    return {name: costs.ratios(name, figure) for name in arms if name != BASELINE}
