"""Commands about how much enforcement bears: bottleneck."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands import complete
from bench.commands.common import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_INVALID,
    EXIT_MACHINE,
    EXIT_USAGE,
    epilog,
    fail,
    known_arms,
    load_scenario,
    packages_here,
)

app = typer.Typer()
_CODES = (EXIT_DONE, EXIT_USAGE, EXIT_MACHINE, EXIT_INVALID, EXIT_INTERRUPTED)


@app.command(epilog=epilog("labctl bottleneck hairpin-bottleneck",
                           "labctl bottleneck hairpin-bottleneck --arms none,hairpin --rate 500 --rounds 5",
                           codes=_CODES, meaning={EXIT_INVALID: "a policy was not in force beside a window"}))
def bottleneck(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of one in scenarios/.",
                                            autocompletion=complete.scenarios)],
    arms: Annotated[str, typer.Option(help="These arms, by comma; those of the scenario if left out.",
                                      autocompletion=complete.arms)] = "",
    rate: Annotated[float, typer.Option(min=1, max=100_000, help="New connections a second that each pair offers.")]
    = 2000.0,
    seconds: Annotated[float, typer.Option(min=0.1, max=60, help="How long each window is.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often everything is measured.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="One round of short windows.")] = False,
    results: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Add pair after pair of one segment, all talking at once, and find where each arm no longer keeps up.

    A table, a figure and all windows are kept in the results' directory.
    """
    from bench import crowding
    from lab.isolation import IsolationError

    loaded = load_scenario(scenario)
    names = known_arms(tuple(dict.fromkeys(a.strip() for a in arms.split(",") if a.strip())) or loaded.arms)
    packages_here()
    if loaded.backend != "mininet":
        raise fail("labctl: bottleneck runs on the Mininet backend alone", EXIT_USAGE)
    options = crowding.Options(names, rate, 0.5 if quick else seconds, 1 if quick else rounds, loaded.seed,
                               results.resolve(), as_json)
    try:
        crowding.pairs_of(loaded)
        raise typer.Exit(crowding.run(loaded, options))
    except crowding.CrowdError as err:
        raise fail(f"labctl: {err}", EXIT_USAGE) from None
    except IsolationError as err:
        raise fail(str(err), EXIT_MACHINE) from None
