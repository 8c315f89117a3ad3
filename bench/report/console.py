"""How anything is printed for people: colour on a terminal, none with NO_COLOR (https://no-color.org) or elsewhere."""

from __future__ import annotations

import os
import sys

from rich.console import Console

PLAIN_WIDTH = 100  # a file or a pipe has no width of its own; 80 columns would fold the tables


def plain() -> bool:
    """Whether the user asked for no colour: then no escape sequence at all is written, bold and cursor included."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


class _Console(Console):
    """One that goes on in silence where whoever read it has seen enough: the exit status says the rest."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


def console(*, stderr: bool = False) -> Console:
    """A console for standard output, or standard error."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PLAIN_WIDTH
    return _Console(stderr=stderr, highlight=False, width=width, color_system=None if plain() else "auto")
