"""Saved results: which there are, and reading one back with what it was a run of. Reads files; judges nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.report import summary as shape
from bench.report.summary import Summary

_OTHERS = ("failure.json", "churn.json")  # of commands that compare no costs: nothing to set beside a run


class SavedError(Exception):
    """A result cannot be read; the message says why and what to do, in a line."""


@dataclass(frozen=True, slots=True)
class Saved:
    """One result. `scenario_digest` is of the scenario file as it was run; "" where it was not kept."""

    path: Path
    summary: Summary
    scenario_digest: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One directory of results, readable or not: then `problem` says why."""

    path: Path
    scenario: str
    saved: Saved | None
    problem: str = ""

    def as_data(self) -> dict[str, Any]:
        """For programs; what cannot be read is null."""
        found = self.saved.summary if self.saved else None
        plain: dict[str, Any] = {"path": str(self.path), "scenario": self.scenario, "problem": self.problem or None}
        if found is None:
            return plain | dict.fromkeys(("started", "seed", "arms", "blocks", "quick", "interrupted", "invalid",
                                          "defects", "duration_s"))
        return plain | {
            "started": found.started, "seed": found.seed, "arms": list(found.arms), "blocks": found.blocks,
            "quick": found.quick, "interrupted": found.interrupted, "invalid": list(found.invalid),
            "defects": sum(arm.defects or 0 for arm in found.arms.values()), "duration_s": found.duration_s}


def entries(root: Path) -> tuple[Entry, ...]:
    """Every result under `root`, newest first."""
    return tuple(sorted(_entries(root), key=lambda entry: (entry.path.name, str(entry.path)), reverse=True))


def _entries(root: Path) -> Iterator[Entry]:
    for directory in root.glob("*/*/"):
        if any((directory / name).exists() for name in _OTHERS):
            continue
        try:
            yield Entry(directory, directory.parent.name, read(directory))
        except SavedError as err:
            yield Entry(directory, directory.parent.name, None, str(err).removeprefix(f"{directory}: "))


def read(path: Path) -> Saved:
    """The result in a directory, or that a summary.json belongs to. Raises SavedError."""
    directory = path.parent if path.name == "summary.json" else path
    file = directory / "summary.json"
    try:
        found = shape.from_json(file.read_bytes())
    except FileNotFoundError:
        raise SavedError(f"{directory}: has no summary.json: the run was killed, or this is no result") from None
    except OSError as err:
        raise SavedError(f"{directory}: cannot be read: {err.strerror}") from None
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        raise SavedError(f"{directory}: summary.json is not of format {shape.FORMAT}: {place}: "
                         f"{first['msg'].splitlines()[0]}; run it again with this labctl") from None
    return Saved(directory, found, _digest(directory / "scenario.yaml"))


def newest(root: Path, scenario: str) -> Saved:
    """The newest result of a scenario that can be read. Raises SavedError."""
    for entry in entries(root):
        if entry.scenario == scenario and entry.saved is not None:
            return entry.saved
    raise SavedError(f"{scenario}: there is neither such a path nor a result of it in {root}; "
                     "labctl results shows what there is")


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""
