"""Campaigns from every foothold: what `labctl attack --every-foothold` prints, and its JSON."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.report.lateral import Middle


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Made(_Model):
    """One campaign with real packets, to its end."""

    foothold: str = Field(description="host/process")
    taken: int = Field(description="other hosts taken")
    by_process: int = Field(description="of these, with no dropped binary anywhere on the way")
    at_goal: bool = Field(description="the foothold is on a goal itself: it counts in no figure of the goal")
    reached: bool = Field(description="a goal was taken")
    attempts: int = Field(description="attempts made in all")
    attempts_to_goal: int | None = Field(description="attempts made until the first goal was taken; null: never")
    seconds_to_goal: float | None = Field(description="seconds until then; null: never")


class Arm(_Model):
    """One arm's campaigns."""

    unsupported: str | None = Field(None, description="why this machine cannot run the arm; null if it ran")
    devices: int | None = Field(None, description="devices of the lab, looked at before any packet: none leads out")
    made: tuple[Made, ...] = Field((), description="every campaign, in order")
    shares: tuple[float, ...] = Field((), description="of every campaign, the share of the other hosts taken, 0..1")
    attempts_to_goal: Middle | None = Field(None, description="over campaigns that began elsewhere; null: none did")
    seconds_to_goal: Middle | None = Field(None, description="likewise")
    attempts: int = Field(0, description="attempts of all campaigns together")
    blocked: int = Field(0, description="of these, not open and not arrived")
    seen: int = Field(0, description="of these, told of by the arm's telemetry")
    alerted: int = Field(0, description="of these, told of as denied (of a monitor: as what it would deny)")
    alert_delay_s: float | None = Field(
        None, description="median from an attempt to the time stamped on the first record that calls it denied")


class Campaigns(_Model):
    """All of it. `interrupted`: what had been made by then is here."""

    scenario: str
    runs: int = Field(description="campaigns of every foothold, each with a seed of its own")
    interrupted: bool = False
    arms: dict[str, Arm]


def show(found: Campaigns, console: Console) -> None:
    """The table, arms as columns."""
    console.print(table(found))
    for name, arm in found.arms.items():
        if arm.unsupported:
            console.print(f"[bold]{escape(name)}[/bold] cannot run here: {escape(arm.unsupported)}")
    first = next(iter(found.arms.values()), None)
    if first and first.made:
        console.print(f"{len(first.made):,} campaigns an arm, real packets, in lab {found.scenario}")


def table(found: Campaigns) -> Table:
    """Blast radius, what it takes to get to the goal, and what was noticed."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    grid.add_column("", no_wrap=True)
    arms = {name: arm for name, arm in found.arms.items() if arm.made}
    for name in arms:
        grid.add_column(escape(name))
    rows: dict[str, Callable[[Arm], str]] = {
        "blast radius, mean of every foothold": lambda arm: _share(float(np.mean(arm.shares))),
        "  95th percentile": lambda arm: _share(float(np.percentile(arm.shares, 95))),
        "  worst": lambda arm: _share(max(arm.shares)),
        "goal taken": lambda arm: f"{arm.attempts_to_goal.reached} of {arm.attempts_to_goal.n}"
        if arm.attempts_to_goal else "–",
        "attempts to the goal": lambda arm: _middle(arm.attempts_to_goal, "{:,.0f}"),
        "seconds to the goal": lambda arm: _middle(arm.seconds_to_goal, "{:,.3f}"),
        "attempts": lambda arm: f"{arm.attempts:,}",
        "  blocked": lambda arm: f"{arm.blocked:,}",
        "  seen": lambda arm: f"{arm.seen:,}",
        "  alerted on": lambda arm: f"{arm.alerted:,}",
        "  … after, median": lambda arm: "–" if arm.alert_delay_s is None else f"{arm.alert_delay_s * 1e3:,.1f} ms"}
    for label, text in rows.items():
        grid.add_row(label, *(text(arm) for arm in arms.values()))
    return grid


def _share(share: float) -> str:
    return f"{share * 100:.1f}".removesuffix(".0") + " %"


def _middle(one: Middle | None, form: str) -> str:
    if one is None:
        return "–"
    if one.median is None:
        return "beyond what was seen"
    low, high = (form.format(end) if end is not None else "…" for end in (one.low, one.high))
    return f"{form.format(one.median)} \\[{low}–{high}]"
