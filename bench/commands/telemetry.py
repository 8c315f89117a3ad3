"""The command telemetry: the dialects of flow telemetry side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands import complete
from bench.commands.common import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_MACHINE,
    EXIT_USAGE,
    epilog,
    fail,
    known_arms,
    load_scenario,
    packages_here,
)

app = typer.Typer()


@app.command(epilog=epilog("labctl telemetry three-tier", "labctl telemetry three-tier --arm agent-nft",
                           "labctl telemetry three-tier --json | jq '.dialects[].settings[].recall'",
                           codes=(EXIT_DONE, EXIT_USAGE, EXIT_MACHINE, EXIT_INTERRUPTED)))
def telemetry(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of one in scenarios/.",
                                            autocompletion=complete.scenarios)],
    arm: Annotated[str, typer.Option(help="Under which arm, whose own records are one of the dialects.",
                                     autocompletion=complete.arms)] = "virtual-switch",
    factor: Annotated[float, typer.Option(min=1, help="Seconds of a cloud's log for one second of the lab.")] = 60.0,
    flows: Annotated[int, typer.Option(min=10, help="At most so many flows are probed; a sample beyond.")] = 4000,
    results: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """What each dialect of flow telemetry tells of the same flows, at three settings: recall, fields, delay, losses."""
    from bench.telemetry import Plan, run
    from lab.isolation import IsolationError

    loaded = load_scenario(scenario)
    if loaded.backend != "mininet":
        raise fail(f"labctl: {scenario}: mirror ports are on the backend mininet alone, and this one is on "
                   f"{loaded.backend}", EXIT_USAGE)
    known_arms((arm,))
    packages_here()
    try:
        raise typer.Exit(run(loaded, arm, Plan(factor=factor, flows=flows), results.resolve(), as_json=as_json))
    except IsolationError as err:
        raise fail(str(err), EXIT_MACHINE) from None
