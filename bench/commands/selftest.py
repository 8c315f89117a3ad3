"""Commands that test labctl and this machine as instruments: selftest, calibrate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.commands.common import (
    EXIT_DEFECT,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_INVALID,
    EXIT_MACHINE,
    EXIT_USAGE,
    epilog,
    fail,
    packages_here,
)

app = typer.Typer()
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
_CODES = (EXIT_DONE, EXIT_DEFECT, EXIT_USAGE, EXIT_MACHINE, EXIT_INVALID, EXIT_INTERRUPTED)


@app.command(epilog=epilog("labctl selftest", "labctl selftest --only delay --only loss",
                           "labctl selftest --json | jq '.[].outcome'", codes=_CODES))
def selftest(
    as_json: Json = False,
    only: Annotated[list[str] | None, typer.Option(help="Only this plant; may be given again.")] = None,
) -> None:
    """Plant known faults on real packets, measure them as `run` does, and see that they come out as planted.

    Ends with 1 if a plant did not come out, with 4 if one cannot be told on a machine as noisy as this one, else with
    0. A plant that this machine cannot make is shown with the reason.
    """
    from bench.report import selftest as report
    from bench.selftest import session
    from lab.isolation import IsolationError, run_isolated

    try:
        plants = session.chosen(only or ())
    except LookupError as err:
        raise fail(f"labctl: {err.args[0]}", EXIT_USAGE) from None
    packages_here()
    delay = session.delay_object()
    try:
        status = run_isolated(lambda me: report.told(
            lambda told, say: session.run(me, plants, delay, say, told), as_json=as_json), "run", "selftest")
    except IsolationError as err:
        raise fail(str(err), EXIT_MACHINE) from None
    raise typer.Exit(status)


@app.command(epilog=epilog("labctl calibrate", "labctl calibrate --json | jq .noise",
                           codes=(EXIT_DONE, EXIT_MACHINE, EXIT_INTERRUPTED)))
def calibrate(
    as_json: Json = False,
    results: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Measure the instruments: this machine's noise floor, what they cost themselves, and where the traffic bends."""
    from bench.instruments.datapath import InstrumentError
    from bench.instruments.traffic import TrafficError
    from bench.report import calibration as report
    from bench.selftest import calibration
    from lab.backends.mininet_lab import LabDownError
    from lab.deploy.enforcement import DeployError
    from lab.hosts.control import ServiceError
    from lab.isolation import IsolationError, RunIdentity, run_isolated

    packages_here()
    place = results.resolve()

    def body(me: RunIdentity) -> int:
        try:
            found, path = calibration.run(me, place, lambda text: print(f"labctl: {text}", file=sys.stderr, flush=True))
        except (LabDownError, DeployError, InstrumentError, TrafficError, ServiceError, OSError) as err:
            print(f"labctl: {err}", file=sys.stderr)
            return EXIT_MACHINE
        if as_json:
            print(json.dumps(found, indent=1))
        else:
            report.show(found, Console(highlight=False, width=None if sys.stdout.isatty() else 100))
            print(f"\nsaved in {path}")
        return EXIT_DONE

    try:
        raise typer.Exit(run_isolated(body, "run", "calibrate"))
    except IsolationError as err:
        raise fail(str(err), EXIT_MACHINE) from None
