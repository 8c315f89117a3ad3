"""What a look at this machine found, on a terminal and as data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.installed import Arm, Checkup
from lab.features import CHECKS
from lab.packages import apt_line

_NEAR_NOTHING = 0.05  # of a processor: not worth a name


def show(found: Checkup, console: Console) -> None:
    """Print tools, features, arms and conditions, and what mends what; the verdict last."""
    for title, table in (("tools", _tools(found)), ("features", _features(found)), ("arms", _arms(found.arms)),
                         ("conditions", _conditions(found))):
        console.print(f"[bold]{title}[/]")
        console.print(table)
        console.print()
    for line in verdict(found):
        console.print(line)


def verdict(found: Checkup) -> list[str]:
    """The end of it, as rich markup: what runs here, what to type first, and whether figures can be trusted."""
    lines = []
    if found.features.refused:
        lines.append(f"[bold red]nothing can run here:[/] {escape(found.features.refused)}")
    if found.missing:
        lines.append(f"[bold red]packages are missing;[/] as root type: {apt_line(found.missing)}")
    if found.can_run:
        will = [arm.entry.arm.name for arm in found.arms if not arm.why_not]
        lines.append(f"{len(will)} of {len(found.arms)} arms will run here: {escape(', '.join(will))}")
    spoilt = [condition.name for condition in found.conditions if condition.spoils]
    lines.append(f"[yellow]figures taken now would suffer from: {', '.join(spoilt)}[/]" if spoilt
                 else "nothing was seen that spoils figures")
    return lines


def as_data(found: Checkup) -> dict[str, Any]:
    """The same for programs."""
    lacks, used = found.features.lacks, _users(found.arms)
    return {
        "can_run": found.can_run, "refused": found.features.refused,
        "packages": {"missing": list(found.missing), "remedy": apt_line(found.missing) if found.missing else None},
        "tools": [{"command": one.tool.command, "package": one.tool.package, "path": one.path,
                   "version": one.version} for one in found.tools],
        "features": [{"name": name, "purpose": CHECKS[name].purpose, "here": lack is None,
                      "problem": lack.problem if lack else None, "remedy": lack.remedy if lack else None,
                      "used_by": used[name]} for name, lack in lacks.items()],
        "arms": [{"name": arm.entry.arm.name, "runs_here": not arm.why_not, "why_not": list(arm.why_not),
                  "remedies": list(arm.remedies)} for arm in found.arms],
        "conditions": [asdict(condition) for condition in found.conditions],
        "busiest": [{"command": name, "share_of_a_cpu": round(share, 3)} for name, share in found.busiest],
    }


def _grid(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 2))
    for index, head in enumerate(heads):
        table.add_column(head, no_wrap=index == 0)
    return table


def _tools(found: Checkup) -> Table:
    table = _grid("command", "version", "purpose")
    for one in found.tools:
        here = escape(one.version) if one.path else f"[red]missing[/], in package {one.tool.package}"
        table.add_row(one.tool.command, here, f"[dim]{one.tool.purpose}[/]")
    return table


def _features(found: Checkup) -> Table:
    table = _grid("feature", "here", "what for")
    used = _users(found.arms)
    for name, lack in found.features.lacks.items():
        needed = f" (needed by {escape(', '.join(used[name]))})" if used[name] else ""
        what_for = f"[dim]{CHECKS[name].purpose}{needed}[/]"
        if lack is None:
            table.add_row(name, "[green]here[/]", what_for)
        else:
            table.add_row(name, "[red]missing[/]" if used[name] else "missing",
                          f"{what_for}\n{escape(lack.problem)}\nmend: {escape(lack.remedy)}")
    return table


def _arms(arms: Iterable[Arm]) -> Table:
    table = _grid("arm", "will it run")
    for arm in arms:
        if not arm.why_not:
            table.add_row(escape(arm.entry.arm.name), "[green]will run[/]")
        else:
            lines = [*arm.why_not, *(f"mend: {remedy}" for remedy in arm.remedies)]
            table.add_row(escape(arm.entry.arm.name), "[red]will not run:[/] " + escape("\n".join(lines)))
    return table


def _conditions(found: Checkup) -> Table:
    table = _grid("condition", "value", "what then")
    for one in found.conditions:
        said = f"{escape(one.effect)}\nmend: {escape(one.remedy)}" if one.spoils else ""
        colour = "yellow" if one.spoils else "green"
        table.add_row(one.name, f"[{colour}]{escape(one.value)}[/]", said)
    busy = [f"{name} {share:.0%}" for name, share in found.busiest if share > _NEAR_NOTHING]
    table.add_row("busiest processes", escape(", ".join(busy) or "none to speak of"), "")
    return table


def _users(arms: Iterable[Arm]) -> Mapping[str, list[str]]:
    """Which arms need each feature."""
    used: dict[str, list[str]] = defaultdict(list)
    for arm in arms:
        for need in arm.entry.needs:
            used[need.name].append(arm.entry.arm.name)
    return used
