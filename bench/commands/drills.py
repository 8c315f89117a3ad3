"""Commands that do something to a lab and watch: failure, churn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

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
from bench.commands.standing import progress
from lab.model import Scenario

app = typer.Typer()
_CODES = (EXIT_DONE, EXIT_USAGE, EXIT_MACHINE, EXIT_INTERRUPTED)
ScenarioName = Annotated[str, typer.Argument(help="A scenario file, or the name of one in scenarios/.",
                                             autocompletion=complete.scenarios)]
Arms = Annotated[str, typer.Option(help="Only these arms, by comma; 'none' is always there, as the control.",
                                   autocompletion=complete.arms)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Results = Annotated[Path, typer.Option(help="Where results are kept.")]


@app.command(epilog=epilog("labctl failure single-point-of-failure",
                           "labctl failure three-tier --arms agent-nft --fault kill --fault restart",
                           "labctl failure three-tier --json | jq '.rows[].judged.leak.any.seconds'", codes=_CODES))
def failure(
    scenario: ScenarioName,
    arms: Arms = "",
    fault: Annotated[list[str] | None, typer.Option(
        help="kill, restart, overload, partition or unplug; may be given again. All if none is given.")] = None,
    point: Annotated[str | None, typer.Option(
        help="Only the enforcement points of this host, or of the router; all at once if left out.")] = None,
    hold: Annotated[float, typer.Option(min=0.5, max=600, help="Seconds that a fault lasts.")] = 8.0,
    rate: Annotated[float, typer.Option(min=1, max=100, help="Tries of each watched flow a second.")] = 40.0,
    flood: Annotated[float, typer.Option(min=1, max=100_000, help="New flows a second of an overload.")] = 20_000.0,
    seed: Annotated[int | None, typer.Option(help="Instead of the scenario's own seed.")] = None,
    as_json: Json = False,
    results: Results = Path("results"),
) -> None:
    """Kill, restart, overload and cut off each arm; count the seconds in which it leaks, and in which it breaks.

    A continuous probe tries a few allowed and denied flows at a fixed rate, before, during and after each fault. Faults
    act on processes and links that labctl itself started. docs/failure-and-churn.md tells how to read it.
    """
    from bench.failure import FAULTS, Design, chosen, measure

    kinds = tuple(dict.fromkeys(fault or FAULTS))
    if unknown := [kind for kind in kinds if kind not in FAULTS]:
        raise fail(f"labctl: there is no fault '{unknown[0]}'; there are: {', '.join(FAULTS)}", EXIT_USAGE)
    loaded, names = _ready(scenario, arms, seed)
    topology = loaded.topology
    if point is not None and point not in (topology.router, *topology.hosts):
        raise fail(f"labctl: there is no host '{point}'; there are: {', '.join((topology.router, *topology.hosts))}",
                   EXIT_USAGE)
    design = Design(hold_s=hold, rate=rate, flood=flood, point=point)

    _run("failure", loaded, results, chosen, lambda it: measure(it, names, kinds, design), as_json=as_json)


@app.command(epilog=epilog("labctl churn ephemeral", "labctl churn ephemeral --arms agent-nft --rounds 30",
                           "labctl churn ephemeral --json | jq '.arms[].spreads[\"appear.protected\"]'", codes=_CODES))
def churn(
    scenario: ScenarioName,
    arms: Arms = "",
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Seeded rounds for every arm.")] = 12,
    seed: Annotated[int | None, typer.Option(help="Instead of the scenario's own seed.")] = None,
    as_json: Json = False,
    results: Results = Path("results"),
) -> None:
    """Have hosts appear, move and vanish while each arm stands; how long until it protects, serves and forgets them.

    In every round a host joins, moves to another address and is switched off; a stranger takes its address at once.
    Each time labctl is told, compiles and delivers what changes. docs/failure-and-churn.md tells how to read it.
    """
    from bench.churn import measure

    loaded, names = _ready(scenario, arms, seed)

    _run("churn", loaded, results, lambda _scenario: (), lambda it: measure(it, names, rounds), as_json=as_json)


def _ready(scenario: str, arms: str, seed: int | None) -> tuple[Scenario, tuple[str, ...]]:
    """The scenario on Mininet and its arms, or the end of the command."""
    from dataclasses import replace

    loaded = load_scenario(scenario)
    if loaded.backend != "mininet":
        raise fail(f"{scenario}: failure and churn act on processes and links of the Mininet backend; write backend: "
                   "mininet, or take another scenario", EXIT_USAGE)
    names = known_arms(tuple(a.strip() for a in arms.split(",") if a.strip()) or loaded.arms)
    packages_here()
    return replace(loaded, seed=loaded.seed if seed is None else seed), names


def _run(kind: Literal["failure", "churn"], scenario: Scenario, results: Path, flows: Any, body: Any, *,
         as_json: bool) -> None:
    from rich.console import Console

    from bench import drill
    from bench.report import churn, failure
    from bench.report.console import console
    from lab.isolation import IsolationError

    table: Callable[[Any, Console], None] = failure.show if kind == "failure" else churn.show

    def show(found: Any, where: str) -> None:
        if as_json:
            print(json.dumps(drill.plain(found), indent=1))
        else:
            table(found, console())
            print(f"\nsaved in {where}")

    with progress() as say:
        try:
            status = drill.run(kind, scenario, results.resolve(), flows, body, show, say)
        except IsolationError as err:
            raise fail(str(err), EXIT_MACHINE) from None
    raise typer.Exit(status)
