"""Commands about scenario files: validate, schema, import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import registry
from bench.commands.common import EXIT_USAGE, epilog, fail, find_scenario

app = typer.Typer()
importers = typer.Typer(no_args_is_help=True, help="Turn other people's data into a scenario.",
                        epilog=epilog("labctl import csw data/csw-g21 -o g21.yaml"))


@app.command(epilog=epilog("labctl validate scenarios/*.yaml"))
def validate(
    scenarios: Annotated[list[str], typer.Argument(help="Scenario files, or names of those in scenarios/.")],
) -> None:
    """Check scenarios and show everything that is wrong with them at once."""
    from lab.scenario import ScenarioError, load

    wrong = False
    for name in scenarios:
        path = find_scenario(name)
        try:
            found = load(path, arms=registry.names())
            print(f"{path}: right: {len(found.topology.hosts)} hosts, {len(found.policy.rules)} rules")
        except ScenarioError as err:
            wrong = True
            for problem in err.problems:
                print(problem, file=sys.stderr)
    if wrong:
        raise typer.Exit(EXIT_USAGE)


@app.command(epilog=epilog("labctl schema > summary.schema.json"))
def schema() -> None:
    """Print the JSON Schema of summary.json."""
    from bench.report.summary import schema_text

    print(schema_text(), end="")


@importers.command(epilog=epilog("labctl import csw data/csw-g21 --train-hours 24 -o g21.yaml"))
def csw(
    directory: Annotated[Path, typer.Argument(help="The graph's directory (hourly edge files, groupings).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The scenario file to write.")],
    nodes: Annotated[str, typer.Option(help="'grouped': nodes with a known group; 'all'.")] = "grouped",
    train_hours: Annotated[int, typer.Option(min=1, max=95, help="Hours that the policy is learnt from.")] = 24,
    seed: Annotated[int, typer.Option(help="Decides what the data does not say.")] = 1,
    policy_level: Annotated[str, typer.Option(help="Learn rules between: group, host.")] = "group",
) -> None:
    """Traffic of "A Dataset of Networks of Computing Hosts" (IWSPA 2022) as a scenario with a learnt policy."""
    from lab.importers.csw import CswError, import_csw

    if nodes not in ("grouped", "all"):
        raise fail(f"--nodes: '{nodes}' is neither 'grouped' nor 'all'", EXIT_USAGE)
    if policy_level not in ("group", "host"):
        raise fail(f"--policy-level: '{policy_level}' is neither 'group' nor 'host'", EXIT_USAGE)
    try:
        made = import_csw(directory, nodes=nodes, train_hours=train_hours, seed=seed,  # type: ignore[arg-type]
                          policy_level=policy_level)  # type: ignore[arg-type]
        output.write_text(made.text)
    except CswError as err:
        raise fail(str(err), EXIT_USAGE) from None
    except OSError as err:
        raise fail(f"{err.filename or output}: {err.strerror}", EXIT_USAGE) from None
    Console(stderr=True, highlight=False).print(f"wrote {output}; run it with: labctl run {output}")
