"""Blast radius from proven edges: what `labctl attack --every-foothold --shared` prints, and its JSON."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.report.lateral import Spread


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Arm(_Model):
    """One arm's survey. Valid only where nothing that was tried again `differ`s."""

    unsupported: str | None = Field(None, description="why this machine cannot run the arm; null if it ran")
    devices: int | None = Field(None, description="devices of the lab, looked at before any packet: none leads out")
    scanned: int = Field(0, description="flows scanned: every TCP port from every process and every dropped binary")
    opened: int = Field(0, description="of these, open")
    exploits: int = Field(0, description="exploits sent, one port after another of each pair of positions")
    proven: int = Field(0, description="pairs of positions whose target obeyed, proven by a nonce")
    again: int = Field(0, description="scans and exploits tried again at the end")
    differ: int = Field(0, description="of these, ended otherwise")
    differed: tuple[str, ...] = Field((), description="the first 20 of them")
    seconds: float = Field(0.0, description="of scanning and exploiting")
    spread: dict[str, Spread] = Field({}, description="blast radius of every foothold, by rule of what is vulnerable")


class Shared(_Model):
    """All of it. `interrupted`: what had been made by then is here."""

    scenario: str
    interrupted: bool = False
    arms: dict[str, Arm]

    @property
    def invalid(self) -> tuple[str, ...]:
        """Arms under which something differed when it was tried again."""
        return tuple(name for name, arm in self.arms.items() if arm.differ)


def show(found: Shared, console: Console) -> None:
    """The table, arms as columns; then what cannot run, and what makes it invalid."""
    console.print(table(found))
    for name, arm in found.arms.items():
        if arm.unsupported:
            console.print(f"[bold]{escape(name)}[/bold] cannot run here: {escape(arm.unsupported)}")
        if arm.differ:
            console.print(f"[bold]{escape(name)}: INVALID[/bold]: {arm.differ} of {arm.again} attempts ended "
                          f"otherwise when tried again, such as {escape(arm.differed[0])}")
    console.print("every position scanned and exploited once with real packets, in lab "
                  f"{escape(found.scenario)}; every foothold's blast radius follows from what was proven")


def table(found: Shared) -> Table:
    """Blast radius by rule, and what it rests on."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    grid.add_column("", no_wrap=True)
    arms = {name: arm for name, arm in found.arms.items() if arm.spread}
    for name in arms:
        grid.add_column(escape(name))
    for rule in dict.fromkeys(rule for arm in arms.values() for rule in arm.spread):
        for label, part in (("mean", "mean"), ("95th percentile", "p95"), ("worst", "worst")):
            grid.add_row(f"{rule}: {label}" if part == "mean" else f"  {label}",
                         *(f"{getattr(arm.spread[rule], part) * 100:.1f} %" for arm in arms.values()))
    rows: dict[str, Callable[[Arm], str]] = {
        "footholds": lambda arm: f"{next(iter(arm.spread.values())).footholds:,}",
        "scans": lambda arm: f"{arm.scanned:,}", "  open": lambda arm: f"{arm.opened:,}",
        "exploits": lambda arm: f"{arm.exploits:,}", "  obeyed": lambda arm: f"{arm.proven:,}",
        "tried again": lambda arm: f"{arm.again:,}", "  otherwise": lambda arm: f"{arm.differ:,}",
        "seconds": lambda arm: f"{arm.seconds:,.0f}"}
    for label, text in rows.items():
        grid.add_row(label, *(text(arm) for arm in arms.values()))
    return grid
