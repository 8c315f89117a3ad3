"""What the shell completes: names of scenarios, arms, results. Quick, and silent whatever is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer

from bench import registry
from bench.commands.common import scenario_names


def scenarios(incomplete: str) -> list[str]:
    """Scenarios by name, or by path where one is being written."""
    if "/" in incomplete or incomplete.startswith("."):
        return _files(incomplete)
    named = [name for name in scenario_names() if name.startswith(incomplete)]
    return named + [path for path in _files(incomplete) if path.endswith(".yaml")]


def arms(incomplete: str) -> list[str]:
    """Arms by comma: the last one is completed, none is offered twice."""
    *before, last = incomplete.split(",")
    return [",".join([*before, name]) for name in registry.names() if name.startswith(last) and name not in before]


def results(ctx: typer.Context, incomplete: str) -> list[str]:
    """Results, newest first: paths, and the scenarios that have some (which stand for the newest)."""
    root = Path(str(ctx.params.get("results") or "results"))
    found = sorted(_saved(root), key=lambda path: path.name, reverse=True)
    names = [*dict.fromkeys(path.parent.name for path in found), *map(str, found)]
    return [name for name in names if name.startswith(incomplete)]


def _saved(root: Path) -> Iterator[Path]:
    return (path.parent for path in root.glob("*/*/summary.json"))


def _files(incomplete: str) -> list[str]:
    """YAML files and directories that begin so; a directory ends in a slash."""
    start, _, begun = incomplete.rpartition("/")
    base = Path(f"{start}/" if start or incomplete.startswith("/") else ".")
    prefix = f"{start}/" if "/" in incomplete else ""
    try:
        inside = sorted(base.iterdir())
    except OSError:
        return []
    return [f"{prefix}{path.name}{'/' if path.is_dir() else ''}" for path in inside
            if path.name.startswith(begun) and (path.is_dir() or path.suffix in (".yaml", ".yml"))]
