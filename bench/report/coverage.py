"""The coverage map: of each class of traffic that was really made, which fields each arm's telemetry told rightly."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.report.summary import FIELDS, Arm, Recall

FULL = 0.995  # rounds to 100 %


def show(arms: Mapping[str, Arm], console: Console) -> None:
    """A table an arm, classes as rows; then its blind spots in words. An arm that saw nothing is said to be blind."""
    for name, arm in arms.items():
        if not any(one.get("flow", Recall(recall=None, n=0)).recall for one in arm.coverage.values()):
            console.print(f"[bold]{escape(name)}[/bold]: has no telemetry, or it saw nothing\n")
            continue
        console.print(f"[bold]{escape(name)}[/bold]")
        console.print(table(arm))
        for spot in arm.blind_spots:
            console.print(f"  blind spot: {escape(spot)}")
        console.print()


def table(arm: Arm) -> Table:
    """One row a class of traffic: how many flows, and the share of which each field was right."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    grid.add_column("traffic", no_wrap=True)
    for heading in ("flows", *FIELDS):
        grid.add_column(heading, justify="right")
    for name, fields in arm.coverage.items():
        grid.add_row(escape(name), f"{fields['flow'].n:,}", *(_cell(fields[field]) for field in FIELDS))
    return grid


def _cell(one: Recall) -> str:
    if one.recall is None:
        return "–"
    text = f"{one.recall * 100:.1f}".removesuffix(".0") + " %"
    colour = "green" if one.recall >= FULL else "red" if one.recall == 0 else "yellow"
    return f"[{colour}]{text}[/{colour}]"
