"""What is wrong with a scenario file, as lines for people: file, line, place, what is wrong, what to write instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NoReturn

Place = tuple[str | int, ...]  # where in the document: mapping keys and list indices

_SHOWN = 60  # characters of a user's value that a message repeats
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,60}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `line` counts from 1; None where the mistake is in no line (a missing file)."""

    file: str
    line: int | None
    place: str
    message: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (where, self.place, self.message) if part)


class ScenarioError(Exception):
    """A scenario cannot be used; `problems` says why, all at once, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(dict.fromkeys(problems), key=lambda p: (p.line or 0, p.place, p.message)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Report:
    """Collects the problems of one file. `line_of` finds the line of a place in it, once the file is read."""

    def __init__(self, file: str) -> None:
        self._file = one_line(file)
        self.line_of: Callable[[Place], int | None] = lambda _: None
        self.problems: list[Problem] = []

    def add(self, place: Place, message: str, line: int | None = None) -> None:
        """Record that what stands at `place` (or in `line`) is wrong."""
        self.problems.append(Problem(self._file, line or self.line_of(place), place_text(place), message))

    def stop(self, message: str, line: int | None = None) -> NoReturn:
        """Record that the file as a whole cannot be used, and raise all that was found."""
        self.add((), message, line)
        raise ScenarioError(self.problems)

    def stop_at(self, place: Place, message: str) -> NoReturn:
        """Record that what stands at `place` leaves nothing to go on with, and raise all that was found."""
        self.add(place, message)
        raise ScenarioError(self.problems)

    def stop_if_any(self) -> None:
        """Raise all that was found, if anything was."""
        if self.problems:
            raise ScenarioError(self.problems)


def place_text(place: Place) -> str:
    """`place` as people write it: policy.rules[2].service.

    The allow or deny between a rule and its ends is left out: a rule has exactly one.
    """
    in_rule = len(place) > 4 and place[:2] == ("policy", "rules") and place[3] in ("allow", "deny")
    text = ""
    for part in place[:3] + place[4:] if in_rule else place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += "." * bool(text) + (part if _PLAIN_KEY.fullmatch(part) else shown(part))
    return text


def shown(value: object) -> str:
    """A user's value inside a message: quoted, on one line, shortened."""
    text = repr(value) if isinstance(value, str) else _yaml_like(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def one_line(text: str) -> str:
    """`text` without anything that a terminal would take as more than text on the same line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def closest(word: str, options: Iterable[str]) -> list[str]:
    """The option that `word` was most likely meant to be, or nothing."""
    return get_close_matches(word, list(options), n=1) if len(word) <= _SHOWN else []


def suggest(word: str, options: Iterable[str], what: str) -> str:
    """The remedy for an unknown name: "did you mean 'x'?", or else what there is."""
    options = list(dict.fromkeys(options))
    for close in closest(word, options):
        return f"did you mean {shown(close)}?"
    if not options:
        return f"there are no {what}"
    more = f" and {len(options) - 8} more" if len(options) > 8 else ""
    return f"{what}: {', '.join(one_line(option) for option in options[:8])}{more}"


def _yaml_like(value: object) -> str:
    names = {None: "empty", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return names[value]
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return one_line(str(value))
