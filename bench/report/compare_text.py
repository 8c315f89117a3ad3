"""Several results side by side, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.report.compare import Comparison, Row, Value
from bench.report.saved import Entry

SECTIONS = {"verdicts": "verdicts", "cost": "cost, as a ratio to none", "telemetry": "telemetry", "attack": "attack"}


def show(found: Comparison, console: Console) -> None:
    """Print the comparison: which results, what differs around them, then a table an arm."""
    for number, one in enumerate(found.results, 1):
        s = one.summary
        console.print(f"[bold]{number}[/bold]  {escape(str(one.path))}  {escape(s.scenario)}, {escape(s.started)}, "
                      f"seed {s.seed}, {s.blocks} blocks{', quick' if s.quick else ''}", soft_wrap=True)
    for warning in found.warnings:
        console.print(f"[yellow]note[/yellow]  {escape(warning)}")
    if not found.same_machine:
        console.print("[yellow]the machines differ[/yellow]: only ratios to `none` of the same run are compared; "
                      "a ratio too can depend on the machine")
    for line in found.environment:
        console.print(f"  {escape(line)}")
    for name, rows in found.arms.items():
        console.print(f"\n[bold]{escape(name)}[/bold]")
        console.print(_table(found, rows))
    told = list(differences(found))
    console.print(f"\n{len(told)} differ{'s' if len(told) == 1 else ''} from 1 by more than the intervals"
                  + (":" if told else "."))
    for line in told:
        console.print(f"  {escape(line)}")
    console.print("[dim]≠ marks them: 95 % intervals that do not overlap, or other counts of a whole matrix. "
                  "An attack is one trial: shown, not judged.[/dim]")


def differences(found: Comparison) -> Iterator[str]:
    """What differs from the first result, a line each."""
    for name, rows in found.arms.items():
        for row in rows:
            for number, (value, differs) in enumerate(zip(row.values, row.differs, strict=True), 1):
                if differs:
                    yield f"{name}: {row.name}: {text(row, row.values[0])} in 1, {text(row, value)} in {number}"


def _table(found: Comparison, rows: tuple[Row, ...]) -> Table:
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", collapse_padding=True)
    grid.add_column("", no_wrap=True, min_width=20)
    for number in range(1, len(found.results) + 1):
        grid.add_column(str(number), min_width=12)
    for section in SECTIONS:
        shown = [row for row in rows if row.section == section and any(row.values)]
        for row in shown:
            cells = [f"[bold yellow]{text(row, v)} ≠[/bold yellow]" if differs else text(row, v)
                     for v, differs in zip(row.values, row.differs, strict=True)]
            grid.add_row(row.name, *cells)
        if shown:
            grid.add_section()
    return grid


def text(row: Row, value: Value | None) -> str:
    """One figure as people read it."""
    if value is None or value.value is None:
        return "–"
    if row.section == "verdicts":
        return f"{value.value:,.0f} of {value.n:,}" if value.n is not None else f"{value.value:,.0f}"
    if row.section == "cost":
        interval = "(no interval)" if value.low is None or value.high is None else (
            f"({value.low:.2f}–{value.high:.2f})")
        return f"×{value.value:.2f} {interval}"
    if row.name == "goal reached":
        return "yes" if value.value else "no"
    return f"{value.value * 100:.1f} %"


def listing(found: tuple[Entry, ...]) -> Table:
    """Saved results as a table, in their order."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("result", "when", "arms"):
        grid.add_column(title, overflow="fold")
    grid.add_column("took", justify="right")
    grid.add_column("marks", overflow="fold")
    for entry in found:
        if entry.saved is None:
            grid.add_row(escape(str(entry.path)), "", "", "", f"[red]unreadable[/red]: {escape(entry.problem)}")
            continue
        s = entry.saved.summary
        grid.add_row(escape(str(entry.path)), escape(s.started[:16].replace("T", " ")), escape(", ".join(s.arms)),
                     f"{s.duration_s:.0f} s", ", ".join(_marks(entry)) or "–")
    return grid


def _marks(entry: Entry) -> Iterator[str]:
    assert entry.saved is not None
    s = entry.saved.summary
    defects = sum(arm.defects or 0 for arm in s.arms.values())
    if defects:
        yield f"[bold red]{defects:,} defect{'s' if defects > 1 else ''}[/bold red]"
    if s.invalid:
        yield f"[bold red]INVALID[/bold red] ({escape(s.invalid[0])})"
    if s.interrupted:
        yield "[yellow]interrupted[/yellow]"
    if s.quick:
        yield "quick"
