"""The installed arms on a terminal and as data: what each needs, and what it claims to cover."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.installed import CLASSES, Arm, Entry

_COLOURS = {"yes": "green", "no": "dim", "partly": "yellow", "–": "dim"}
_LEGEND = (
    "claims: does it claim to enforce there? same host: between processes of one host; unmanaged: a host that takes no "
    "agent, in another segment; icmp, ipv6: as it does TCP over IPv4; spoofed source: no host can send under "
    "another's address; process, user: rules may name them; –: claims nothing there could be a claim about.",
    "Claims are checked by every run: what is enforced otherwise is a defect, what is not claimed a gap.",
)


def show(arms: Sequence[Arm], console: Console) -> None:
    """Print every arm: what it is and needs, then the claims of all side by side."""
    for arm in arms:
        _describe(arm, console)
    sound = [arm.entry for arm in arms if arm.entry.coverage is not None]
    if sound:
        for part in _fitting(sound, console.width):
            console.print(_claims(part))
            console.print()
        for line in _LEGEND:
            console.print(line, style="dim")


def as_data(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """The same for programs: one object an arm."""
    return [{"name": arm.entry.arm.name, "description": arm.entry.description, "package": arm.entry.arm.package,
             "version": arm.entry.arm.version, "entry_point": arm.entry.arm.target, "broken": arm.entry.broken,
             "needs": [{"feature": need.name, "why": need.why} for need in arm.entry.needs],
             "runs_here": not arm.why_not, "why_not": list(arm.why_not), "remedies": list(arm.remedies),
             "coverage": arm.entry.coverage} for arm in arms]


def _describe(arm: Arm, console: Console) -> None:
    entry = arm.entry
    said = "[bold red]broken[/]" if entry.broken else escape(entry.description)
    console.print(f"[bold]{escape(entry.arm.name)}[/]  {said}")
    origin = f"{entry.arm.package} {entry.arm.version}, {entry.arm.target}"
    console.print(f"  from {escape(origin)}", style="dim")
    if entry.needs:
        console.print(f"  needs {', '.join(escape(need.name) for need in entry.needs)}"
                      f"{'' if arm.why_not else ': all here'}")
    for reason in arm.why_not:
        console.print(f"  [red]will not run:[/] {escape(reason)}")
    for remedy in arm.remedies:
        console.print(f"  mend: {escape(remedy)}")
    console.print()


def _fitting(entries: Sequence[Entry], width: int) -> Iterator[Sequence[Entry]]:
    """The arms in portions whose names fit beside each other, so that none is cut short."""
    part: list[Entry] = []
    used = first = max(map(len, CLASSES)) + 2
    for entry in entries:
        need = len(entry.arm.name) + 2
        if part and used + need > width:
            yield part
            part, used = [], first
        part.append(entry)
        used += need
    yield part


def _claims(entries: Sequence[Entry]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("claims", no_wrap=True)
    for entry in entries:
        table.add_column(escape(entry.arm.name))
    for name in CLASSES:
        answers = [entry.coverage[name] for entry in entries if entry.coverage is not None]
        table.add_row(name, *(f"[{_COLOURS[answer]}]{answer}[/]" for answer in answers))
    return table
