"""What `labctl churn` found, as a table a person reads."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.analysis.churning import LEAST, PARTS, STEPS, ArmReport, Report, Spread

FIGURES = (
    ("newcomer protected", "appear.protected"), ("newcomer served", "appear.served"),
    ("moved, protected", "move.protected"), ("moved, served", "move.served"),
    ("departed, forgotten", "depart.protected"),
)
_WORDS = {"compile_s": "compiled", "place_s": "placed", "point_s": "points' commands", "ready_s": "ready"}


def show(report: Report, console: Console) -> None:
    """Times by arm, then where they went."""
    console.print(f"{report.scenario}: seed {report.seed}, {report.rounds} rounds, each flow tried {report.rate:g} "
                  "times a second; from when labctl is told")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in report.arms:
        table.add_column(name)
    for words, key in FIGURES:
        table.add_row(words, *(duration(arm.spreads[key]) for arm in report.arms.values()))
    table.add_row("permissions inherited", *(inherited(arm) for arm in report.arms.values()))
    table.add_section()
    for part in PARTS:
        table.add_row(f"… {_WORDS[part]}", *(_part(arm, part) for arm in report.arms.values()))
    console.print(table)
    for name, arm in report.arms.items():
        if arm.unclaimed:
            console.print(f"{name}: {arm.unclaimed} denied flows not watched: it does not claim to stop them")
    for name, reason in report.unsupported.items():
        console.print(f"{name}: unsupported: {escape(reason)}")
    for note in report.notes:
        console.print(f"note: {escape(note)}")
    console.print(r"milliseconds: median \[its 95 % interval] ≤ worst; at once: by the first try, in every round; "
                  "never: not while it was watched. Parts: medians")


def duration(found: Spread) -> str:
    """A time over rounds; without one, why."""
    if not found.n:
        return "–"
    if found.never == found.n:
        return "never"
    if found.worst == 0:
        return "at once"
    never = f"{found.never} of {found.n} never" if found.never else f"≤ {_ms(found.worst)}"
    between = rf" \[{_ms(found.low)}–{_ms(found.high)}]" if found.n >= LEAST else ""
    return f"{_ms(found.median)}{between} {never}"


def inherited(arm: ArmReport) -> str:
    """Of the permissions of a departed host that were tried, those that its heir had for a while."""
    steps = arm.steps["depart"]
    leaked, tried = sum(step.leaked for step in steps), sum(step.denied for step in steps)
    return f"{leaked} of {tried}" if tried else "–"


def _part(arm: ArmReport, part: str) -> str:
    values = [arm.spreads[f"{step}.{part}"].median for step in STEPS]
    known = [value for value in values if value is not None]
    return _ms(sorted(known)[len(known) // 2]) if known and any(known) else "–"


def _ms(value: float | None) -> str:
    if value is None:
        return "never"
    return f"{value * 1000:.0f}"
