"""What a run is doing and how long it will still take: a live line on a terminal, a plain line a step elsewhere.

The estimate is a pure function of the plan and of what its steps took so far. A step is expected to take what steps of
its kind took: the baseline's matrix tells how long the others' will, each window of a block how long the next will.
Before any of a kind was seen a rough prior stands in.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from bench.report.console import console, plain

if TYPE_CHECKING:
    from rich.table import Table

BASELINE = "none"
# What the baseline takes for these says nothing of the others: it places nothing and tells nothing.
_OWN = ("deploying", "telemetry")
KNEE_STEPS = 12  # as many as the search takes at most, or nearly


class Step(NamedTuple):
    """One step: `group` is an arm or a block ("block 3"), `kind` what steps alike are known by."""

    group: str
    kind: str
    prior_s: float


@dataclass(frozen=True, slots=True)
class Done:
    """A step that is over, and what it took."""

    group: str
    kind: str
    seconds: float


def steps(arms: Sequence[str], *, hosts: int, flows: int, replay: int, traffic_s: float, attack: bool, blocks: int,
          window_s: float, loads: int = 0) -> tuple[Step, ...]:
    """The plan of a run: up, each arm examined, then `blocks` blocks of every arm and the baseline again,
    `loads` blocks under load likewise, down.

    `traffic_s` is 0 where there is no traffic. The priors are of a machine with two cores and meant to be replaced.
    """
    phases = [("deploying", 1.5 + hosts * 0.03), ("matrix", 1.0 + flows / 1500)]
    phases += [("attack", 3.0)] if attack else []
    phases += [("traffic", traffic_s + 1.0)] if traffic_s else []
    phases += [("replay", 1.0 + replay / 1500)] if replay else []
    phases += [("telemetry", 1.0 + flows / 5000)]
    examined = [Step(arm, _kind(arm, phase), 0.2 if _kind(arm, phase) != phase else prior)
                for arm in arms for phase, prior in phases]
    window = 3 * window_s + 2.5 + (1.5 if traffic_s else 0.0)
    costs = [Step(f"block {number}", "window", window) for number in range(1, blocks + 1) for _ in (*arms, BASELINE)]
    under = [Step("", "knee", 1.0) for _ in range(KNEE_STEPS if loads and traffic_s else 0)]
    under += [Step(f"load {number}", "load", 12.0) for number in range(1, loads + 1) for _ in (*arms, BASELINE)]
    return (Step("", "up", 2.0 + hosts * 0.05), *examined, *costs, *under, Step("", "down", 1.0))


def parsed(text: str) -> tuple[str, str] | None:
    """(group, kind) of the step that a run announces as `text`; None for what is no step of the plan."""
    if text.startswith("standing up"):
        return "", "up"
    if text.endswith("taking the lab down"):
        return "", "down"
    block = re.match(r"(block \d+) of \d+: ", text)
    if block:
        return block[1], "window"
    load = re.match(r"(load \d+) of \d+: ", text)
    if load or text.startswith("knee: "):
        return (load[1], "load") if load else ("", "knee")
    arm, colon, phase = text.partition(": ")
    return (arm, _kind(arm, phase)) if colon else None


def _kind(arm: str, phase: str) -> str:
    return f"{phase} of the baseline" if arm == BASELINE and phase in _OWN else phase


def left_s(plan: Sequence[Step], done: Sequence[Done], current: tuple[str, str] | None, elapsed_s: float) -> float:
    """The seconds still to go: `current` has been under way for `elapsed_s`. What was passed over will not come."""
    taken: dict[str, list[float]] = {}
    for one in done:
        taken.setdefault(one.kind, []).append(one.seconds)

    def expected(step: Step) -> float:
        seen = taken.get(step.kind)
        return sum(seen) / len(seen) if seen else step.prior_s

    after = 0
    for one in done:
        after = _past(plan, (one.group, one.kind), after)
    here = _past(plan, current, after) if current else after
    now = max(0.0, expected(plan[here - 1]) - elapsed_s) if current and here > after else 0.0
    return now + sum(expected(step) for step in plan[here:])


def _past(plan: Sequence[Step], wanted: tuple[str, str], start: int) -> int:
    """The index after the first step from `start` on that is `wanted`; `start` if none is."""
    return next((i + 1 for i in range(start, len(plan)) if plan[i][:2] == wanted), start)


def clock(seconds: float) -> str:
    """`1:05`, `1:01:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Call it with what begins now. A context: the live line is gone when it ends."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._begun, self._since = now, now(), now()
        self._plan: tuple[Step, ...] = ()
        self._done: list[Done] = []
        self._current: tuple[str, str] | None = None
        self._text = ""
        self._live = None if plain() or not sys.stderr.isatty() else _Live(self)

    def expect(self, plan: tuple[Step, ...]) -> None:
        """What will come, as far as it is known: without it no time left is shown."""
        self._plan = plan

    def __call__(self, text: str) -> None:
        now = self._now()
        if self._current:
            self._done.append(Done(*self._current, now - self._since))
        self._current, self._since, self._text = parsed(text), now, text
        if self._live is None:
            print(f"labctl: {text}", file=sys.stderr, flush=True)

    def words(self) -> tuple[str, str]:
        """The step, and the times: elapsed and, where there is a plan, left."""
        now = self._now()
        spent = clock(now - self._begun)
        if not self._plan:
            return self._text, spent
        left = left_s(self._plan, self._done, self._current, now - self._since)
        return self._text, f"{spent}, about {clock(left)} left" if left >= 1 else f"{spent}, almost done"

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._live:
            self._live.stop()


class _Live:
    """The line on the terminal, drawn anew several times a second."""

    def __init__(self, progress: Progress) -> None:
        from rich.live import Live
        from rich.spinner import Spinner

        self._progress, self._spinner = progress, Spinner("dots", style="cyan")
        self._live = Live(console=console(stderr=True), get_renderable=self._line, transient=True,
                          refresh_per_second=8)
        self.start, self.stop = self._live.start, self._live.stop

    def _line(self) -> Table:
        from rich import table
        from rich.markup import escape

        step, times = self._progress.words()
        line = table.Table.grid(padding=(0, 1))
        line.add_row(self._spinner, f"labctl: {escape(step)}", f"[dim]{times}[/dim]")
        return line
