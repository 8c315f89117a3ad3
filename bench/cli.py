"""labctl: the command line. Parses, calls, prints; exit codes are part of the interface."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import registry

EXIT_DONE, EXIT_DEFECT, EXIT_USAGE, EXIT_MACHINE, EXIT_INVALID, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130
_EPILOG = ("Exit codes: 0 done; 1 a defect was found; 2 the call or the scenario is wrong; 3 this machine cannot run "
           "it; 4 the measurement is invalid; 130 interrupted.")

app = typer.Typer(no_args_is_help=True, epilog=_EPILOG, pretty_exceptions_enable=False, rich_markup_mode="rich",
                  help="Microsegmentation, measured: agent-based and agentless enforcement side by side.")
importers = typer.Typer(no_args_is_help=True, help="Turn other people's data into a scenario.")
app.add_typer(importers, name="import")


def fail(message: str, status: int) -> typer.Exit:
    """Print one line for a person on standard error; raise what this returns."""
    print(message, file=sys.stderr)
    return typer.Exit(status)


def find_scenario(name: str) -> Path:
    """The file a user means: a path, or the name of one in scenarios/ here or beside labctl."""
    here, beside = Path("scenarios"), Path(__file__).resolve().parents[1] / "scenarios"
    candidates = [Path(name), *(d / f"{name}.yaml" for d in (here, beside))]
    for path in candidates:
        if path.is_file():
            return path
    known = sorted({p.stem for d in (here, beside) for p in d.glob("*.yaml")})
    raise fail(f"{name}: no such scenario; name a file or one of: {', '.join(known)}", EXIT_USAGE)


@app.command(epilog="Examples: [bold]labctl run three-tier[/]   [bold]labctl run three-tier --arms agent-nft --quick "
                    "--json | jq .arms[/]   " + _EPILOG)
def run(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of one in scenarios/.")],
    arms: Annotated[str, typer.Option(help="Only these arms, by comma; the baseline 'none' is always run.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer, shorter blocks; marked as quick.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary alone, as JSON.")] = False,
    results: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
    blocks: Annotated[int | None, typer.Option(min=0, max=1000, help="Cost blocks: 8, quick 3; 0: none.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the scenario's own seed.")] = None,
) -> None:
    """Stand the network up, put each arm in front of the same traffic and attacker, compare."""
    from bench.experiment import Options
    from bench.session import run_scenario
    from lab.isolation import IsolationError

    loaded = _load(scenario)
    chosen = tuple(dict.fromkeys(["none", *(a.strip() for a in arms.split(",") if a.strip())])) if arms else None
    options = Options(arms=chosen, quick=quick, as_json=as_json, results=results.resolve(), blocks=blocks, seed=seed)
    unknown = [name for name in (chosen or loaded.arms) if name not in registry.names()]
    if unknown:
        raise fail(f"labctl: there is no arm '{unknown[0]}'; installed are: {', '.join(registry.names())}", EXIT_USAGE)
    try:
        raise typer.Exit(run_scenario(loaded, options))
    except IsolationError as err:
        raise fail(str(err), EXIT_MACHINE) from None


@app.command(epilog="Example: [bold]labctl validate scenarios/*.yaml[/]   Exit codes: 0 all are right; 2 not.")
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


@app.command(epilog="Example: [bold]labctl schema > summary.schema.json[/]")
def schema() -> None:
    """Print the JSON Schema of summary.json."""
    from bench.report.summary import schema_text

    print(schema_text(), end="")


@importers.command(epilog="Example: [bold]labctl import csw data/csw-g21 --train-hours 24 -o g21.yaml[/]")
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


def _load(name: str):  # type: ignore[no-untyped-def]
    from lab.scenario import ScenarioError, load

    try:
        return load(find_scenario(name), arms=registry.names())
    except ScenarioError as err:
        raise fail("\n".join(str(problem) for problem in err.problems), EXIT_USAGE) from None


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
