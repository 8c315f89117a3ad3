"""From the cells of a load measurement to effects: paired within blocks, as costs are. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.analysis import bootstrap
from bench.blocks import AA
from bench.loading import LoadCell, LoadRecord
from bench.report import summary as report

BASELINE, BESIDE = "none", "beside"
# A share of the datagrams is 0 on a good day, and has no ratio.
NO_RATIO = ("udp_loss",)
MOST_REASONS = 3


def point_name(share: float) -> str:
    return f"{share:.0%}"


@dataclass(frozen=True)
class Loads:
    """All cells under load, judged: each figure of each point is a family of its own over the arms."""

    record: LoadRecord
    arms: tuple[str, ...]

    @cached_property
    def _cells(self) -> Mapping[tuple[str, int], LoadCell]:
        return {(cell.arm, cell.block): cell for cell in self.record.cells}

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        return tuple(sorted({cell.block for cell in self.record.cells}))

    @cached_property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """The figures by point; `beside` are those without a rate."""
        found: dict[str, dict[str, None]] = {}
        for cell in self.record.cells:
            for point in cell.points:
                found.setdefault(point_name(point.share), {}).update(dict.fromkeys(point.figures))
            found.setdefault(BESIDE, {}).update(dict.fromkeys(cell.beside))
        return {point: tuple(names) for point, names in found.items()}

    def values(self, arm: str, point: str, name: str) -> list[float | None]:
        """One value a block as measured; None where the window is INVALID or the policy was not in force."""
        return [_value(self._cells.get((arm, block)), point, name) for block in self.blocks]

    def arm(self, arm: str) -> report.Load | None:
        """What `arm` (or `none` again) did under load; None where it was not visited."""
        mine = [cell for cell in self.record.cells if cell.arm == arm]
        if not mine:
            return None
        windows = [point for cell in mine for point in cell.points]
        spoilt = [point for point in windows if point.invalid]
        reasons = [f"at {point_name(point.share)} of the knee: {point.invalid[0]}" for point in spoilt]
        reasons += [f"block {cell.block + 1}: {cell.wrong[0]}" for cell in mine if cell.wrong]
        reasons += [f"{name}: not measured: {why}" for cell in mine for name, why in cell.missing.items()]
        return report.Load(
            windows=len(windows), invalid=len(spoilt), wrong=sum(bool(cell.wrong) for cell in mine),
            reasons=tuple(dict.fromkeys(reasons))[:MOST_REASONS],
            points={point: {name: self._figure(arm, point, name) for name in names}
                    for point, names in self.names.items()})

    def _figure(self, arm: str, point: str, name: str) -> report.Figure:
        values = self.values(arm, point, name)
        effect = self._effects(point, name).get(arm, bootstrap.NOTHING)
        return report.figure(effect, values)

    def _effects(self, point: str, name: str) -> dict[str, bootstrap.Effect]:
        if (point, name) not in self._known:
            base = self.values(BASELINE, point, name)
            n = sum(one is not None for one in base)
            found = {BASELINE: bootstrap.Effect(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, n)} if n else {}
            if name not in NO_RATIO:
                columns = {arm: bootstrap.log_ratios(self.values(arm, point, name), base)
                           for arm in self.arms if arm != BASELINE}
                # `none` again is no member of the family: nobody asks whether it is the better buy
                found |= bootstrap.compare(columns)
                found |= bootstrap.compare({AA: bootstrap.log_ratios(self.values(AA, point, name), base)})
            self._known[point, name] = found
        return self._known[point, name]

    @cached_property
    def _known(self) -> dict[tuple[str, str], dict[str, bootstrap.Effect]]:
        return {}


def _value(cell: LoadCell | None, point: str, name: str) -> float | None:
    if cell is None or cell.wrong:
        return None
    if point == BESIDE:
        return cell.beside.get(name)
    return next((one.figures.get(name) for one in cell.points if point_name(one.share) == point), None)


def knee(record: LoadRecord) -> report.Knee | None:
    found = record.knee
    if found is None:
        return None
    return report.Knee(rate=found.rate, failed=found.failed, why=found.why, steps=len(found.steps),
                       rates={point_name(share): rate for share, rate in found.points().items()},
                       counters=record.counters)


def invalid(record: LoadRecord) -> list[str]:
    """Arms of which most visits under load do not count, since the policy was not in force."""
    return [f"{arm} under load: {bad} of {len(mine)} visits do not count, first: {first}"
            for arm, mine in _by_arm(record.cells).items()
            if (bad := sum(bool(cell.wrong) for cell in mine)) * 2 > len(mine)
            for first in [next(cell.wrong[0] for cell in mine if cell.wrong)]]


def _by_arm(cells: Sequence[LoadCell]) -> dict[str, list[LoadCell]]:
    found: dict[str, list[LoadCell]] = {}
    for cell in cells:
        found.setdefault(cell.arm, []).append(cell)
    return found
