"""Commands about this machine and what is installed: doctor, arms."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console

from bench.commands.common import EXIT_DONE, EXIT_MACHINE, epilog

app = typer.Typer()
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
_CODES = (EXIT_DONE, EXIT_MACHINE)


@app.command(epilog=epilog("labctl doctor", "labctl doctor --json | jq .arms", codes=_CODES))
def doctor(as_json: Json = False) -> None:
    """Look at this machine: which arms will run, why others not and what mends it, and what would spoil figures.

    Ends with 0 if labs can be stood up here, whichever arms can not; with 3 if none can: packages are missing, or the
    kernel refuses private namespaces. What spoils figures is a warning.
    """
    from bench.checkup import examine
    from bench.report import doctor as report

    found = examine()
    if as_json:
        print(json.dumps(report.as_data(found), indent=1))
    else:
        report.show(found, _console())
    raise typer.Exit(EXIT_DONE if found.can_run else EXIT_MACHINE)


@app.command(epilog=epilog("labctl arms", "labctl arms --json | jq '.[].coverage'", codes=(EXIT_DONE,)))
def arms(as_json: Json = False) -> None:
    """List the installed arms: what each is and needs, whether it will run here, and what it claims to cover."""
    from bench import checkup
    from bench.catalogue import catalogue
    from bench.report import arms as report
    from lab.packages import missing_packages

    entries = catalogue()
    found = checkup.arms(entries, checkup.probe(), missing_packages())
    if as_json:
        print(json.dumps(report.as_data(found), indent=1))
    else:
        report.show(found, _console())


def _console() -> Console:
    """A file or a pipe has no width of its own; 80 columns would fold the tables."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)
