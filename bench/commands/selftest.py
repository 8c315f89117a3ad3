"""Commands that test labctl itself: selftest."""

from __future__ import annotations

from typing import Annotated

import typer

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
