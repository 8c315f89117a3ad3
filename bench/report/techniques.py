"""Techniques against arms: what `labctl attack --techniques` prints, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.attacks.technique import Ending, Technique

_COLOURS: Mapping[Ending, str] = {"succeeded": "red", "stopped": "green", "not tried": "dim"}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tried(_Model):
    """One technique under one arm."""

    ending: Ending = Field(description="succeeded: proved from the other side; stopped; not tried: see detail")
    detail: str = Field(description="what happened, in words")
    seconds: float = Field(description="how long it took")
    attempts: int = Field(description="connections and exchanges with hosts of the lab that it made")
    blocked: int = Field(description="of these, ended by something on the way; a closed port is not")
    seen: int = Field(description="of these, told of by the arm's telemetry")
    alerted: int = Field(description="of these, told of as denied (of a monitor: as what it would deny)")
    first_alert_s: float | None = Field(
        description="from the technique's first attempt to the time stamped on the first such record; null: none")


class Arm(_Model):
    """One arm's techniques, in the order in which they were tried."""

    unsupported: str | None = Field(None, description="why this machine cannot run the arm; null if it ran")
    devices: int | None = Field(None, description="devices of the lab, looked at before any packet: none leads out")
    tried: dict[str, Tried] = Field(default_factory=dict, description="by technique")


class Techniques(_Model):
    """All of it. `interrupted`: what had been tried by then is here."""

    scenario: str
    interrupted: bool = False
    arms: dict[str, Arm]


def show(found: Techniques, techniques: Sequence[Technique], console: Console) -> None:
    """The table, arms as columns; what detection there was; what happened, in words; what nothing stops, and why."""
    console.print(table(found, techniques))
    console.print()
    console.print(noticed(found))
    for name, arm in found.arms.items():
        if arm.unsupported:
            console.print(f"[bold]{escape(name)}[/bold] cannot run here: {escape(arm.unsupported)}")
            continue
        console.print(f"\n[bold]{escape(name)}[/bold]")
        for one in techniques:
            if tried := arm.tried.get(one.name):
                console.print(f"  {one.mitre} {escape(one.title)}: {tried.ending}: {escape(tried.detail)}",
                              soft_wrap=True)
    console.print()
    for one in techniques:
        if one.unstoppable and any(one.name in arm.tried for arm in found.arms.values()):
            text = f"No arm can stop {one.mitre} {one.title}: {one.unstoppable}."
            console.print(escape(text), soft_wrap=True)


def table(found: Techniques, techniques: Sequence[Technique]) -> Table:
    """One row a technique."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    grid.add_column("ATT&CK", no_wrap=True)
    grid.add_column("technique")
    ran = {name: arm for name, arm in found.arms.items() if not arm.unsupported}
    for name in ran:
        grid.add_column(escape(name))
    for one in techniques:
        if any(one.name in arm.tried for arm in ran.values()):
            grid.add_row(one.mitre, escape(one.title), *(_cell(arm.tried.get(one.name)) for arm in ran.values()))
    return grid


def _cell(tried: Tried | None) -> str:
    return "–" if tried is None else f"[{_COLOURS[tried.ending]}]{tried.ending}[/]"


def noticed(found: Techniques) -> Table:
    """One row an arm: of all attempts, how many were blocked, seen and alerted on; how soon, over the techniques."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for heading in ("arm", "attempts", "blocked", "seen", "alerted on", "techniques alerted on", "soonest, median"):
        grid.add_column(heading, justify="left" if heading == "arm" else "right")
    for name, arm in found.arms.items():
        if arm.tried:
            made = [one for one in arm.tried.values() if one.attempts]
            soon = sorted(one.first_alert_s for one in made if one.first_alert_s is not None)
            middle = f"{soon[(len(soon) - 1) // 2] * 1e3:,.0f} ms" if soon else "–"
            grid.add_row(escape(name), *(f"{sum(getattr(one, what) for one in made):,}"
                                         for what in ("attempts", "blocked", "seen", "alerted")),
                         f"{len(soon)} of {len(made)}", middle)
    return grid
