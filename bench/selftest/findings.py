"""What came of one plant, and what all of them make of the exit status. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.selftest.intervals import Interval, Outcome

STATUS: dict[Outcome, int] = {"FAIL": 1, "NOISY": 4, "PASS": 0, "UNSUPPORTED": 0}


@dataclass(frozen=True, slots=True)
class Finding:
    """One plant, tried: what was planted, what came out (`interval`: where it is a figure), and how long it took."""

    name: str
    detector: str
    planted: str
    found: str
    outcome: Outcome
    interval: Interval | None
    seconds: float


def exit_status(findings: Iterable[Finding]) -> int:
    """1 where a plant did not come out, else 4 where one cannot be told, else 0; unsupported ones are shown."""
    found = {STATUS[f.outcome] for f in findings}
    return 1 if 1 in found else max(found, default=0)
