"""labctl: the command line. Parses, calls, prints; exit codes are part of the interface."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands import (
    agent,
    attack,
    complete,
    crowding,
    drills,
    inside,
    machine,
    measure,
    results,
    scenarios,
    selftest,
    standing,
    telemetry,
)
from bench.commands.common import (
    EXIT_DEFECT,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_INVALID,
    EXIT_MACHINE,
    EXIT_USAGE,
    ChosenBackend,
    epilog,
    fail,
    known_arms,
    load_scenario,
    on_backend,
    packages_here,
    share,
)

_ALL_CODES = (EXIT_DONE, EXIT_DEFECT, EXIT_USAGE, EXIT_MACHINE, EXIT_INVALID, EXIT_INTERRUPTED)

app = typer.Typer(no_args_is_help=True, epilog=epilog("labctl run three-tier", codes=_ALL_CODES),
                  pretty_exceptions_enable=False, rich_markup_mode="rich",
                  help="Microsegmentation, measured: agent-based and agentless enforcement side by side.")


@app.command(epilog=epilog("labctl run three-tier", "labctl run three-tier --arms agent-nft --quick --json | jq .arms",
                           "labctl run three-tier --until 2% --budget 1200", "labctl run three-tier --load",
                           codes=_ALL_CODES))
def run(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of one in scenarios/.",
                                            autocompletion=complete.scenarios)],
    arms: Annotated[str, typer.Option(help="Only these arms, by comma; the baseline 'none' is always run.",
                                      autocompletion=complete.arms)] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer blocks; marked as quick.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary alone, as JSON.")] = False,
    results: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
    blocks: Annotated[int | None, typer.Option(min=0, max=1000, help="Cost blocks: 28, quick 3; 0: none.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the scenario's own seed.")] = None,
    until: Annotated[float | None, typer.Option(
        parser=share, metavar="SHARE", help="Measure blocks until every interval of connection p50 is within this, "
                                            "such as 2%, or the budget is spent.")] = None,
    load: Annotated[bool, typer.Option(
        "--load", help="Measure under load too: find the knee with nothing enforced, then every arm at 25, 50 and 75 % "
                       "of it; TLS handshakes, connections held, UDP loss, CPU by source. Some minutes more.")] = False,
    backend: ChosenBackend = None,
    budget: Annotated[float, typer.Option(min=1, help="Seconds that a run with --until may take.")] = 900.0,
) -> None:
    """Stand the network up, put each arm in front of the same traffic and attacker, compare."""
    from bench.experiment import Options, quickly
    from bench.session import run_scenario
    from lab.isolation import IsolationError

    loaded = on_backend(load_scenario(scenario), backend)
    chosen = tuple(dict.fromkeys(["none", *(a.strip() for a in arms.split(",") if a.strip())])) if arms else None
    known_arms(chosen or loaded.arms)
    packages_here()
    options = Options(arms=chosen, as_json=as_json, results=results.resolve(), blocks=blocks, seed=seed,
                      until=until, budget_s=budget, load=load)
    try:
        raise typer.Exit(run_scenario(loaded, quickly(options) if quick else options))
    except IsolationError as err:
        raise fail(str(err), EXIT_MACHINE) from None


for part in (standing.app, inside.app, scenarios.app, results.app, attack.app, telemetry.app, measure.app, crowding.app,
             drills.app, machine.app, selftest.app):
    app.registered_commands += part.registered_commands
app.add_typer(scenarios.importers, name="import")
app.add_typer(agent.app, name="agent")


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
