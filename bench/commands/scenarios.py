"""Commands about scenario files: new, list, show, validate, schema, import."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import registry
from bench.commands import complete
from bench.commands.common import EXIT_USAGE, epilog, fail, find_scenario, load_scenario, scenario_directories

app = typer.Typer()
importers = typer.Typer(no_args_is_help=True, help="Turn other people's data into a scenario.",
                        epilog=epilog("labctl import csw data/csw-g21 -o g21.yaml"))
Named = Annotated[str, typer.Argument(help="A scenario file, or the name of one in scenarios/.",
                                      autocompletion=complete.scenarios)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command(epilog=epilog("labctl new my-shop", "labctl new my-shop -o my-shop.yaml --force"))
def new(
    name: Annotated[str, typer.Argument(help="The scenario's name: a-z, 0-9 and -.")],
    output: Annotated[Path | None, typer.Option(
        "-o", "--output", help="The file to write; NAME.yaml, in scenarios/ if there is one here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it is there.")] = False,
) -> None:
    """Write a commented scenario to start from. It is right as it stands: validate it, show it, run it."""
    from bench.report.starter import starter
    from lab.schema import NAME

    if not re.fullmatch(NAME, name):
        raise fail(f"labctl: '{name}' is not a name; write up to 40 of a-z, 0-9 and -, no - in front", EXIT_USAGE)
    here = Path("scenarios") if Path("scenarios").is_dir() else Path()
    file = output or here / f"{name}.yaml"
    beside = file.parent / "shop.py"
    text = starter(name, str(file), registry.names(), locustfile=beside.name if beside.is_file() else None,
                   schema=_published_schema(file))
    try:
        with file.open("w" if force else "x") as out:
            out.write(text)
    except FileExistsError:
        raise fail(f"{file}: is there already; choose another name, or overwrite it with --force", EXIT_USAGE) from None
    except OSError as err:
        raise fail(f"{file}: cannot be written: {err.strerror}; name another file with -o", EXIT_USAGE) from None
    print(f"wrote {file}; look at it with: labctl show {file}; run it with: labctl run {file} --quick")


def _published_schema(file: Path) -> str | None:
    """docs/scenario.schema.json of this labctl as seen from `file`, if both are in one tree, so that it stays right."""
    root = Path(__file__).resolve().parents[2]
    schema = root / "docs" / "scenario.schema.json"
    if not schema.is_file() or not file.resolve().is_relative_to(root):
        return None
    return os.path.relpath(schema, file.resolve().parent)


@app.command("list", epilog=epilog("labctl list", "labctl list --json | jq -r '.[].name'"))
def list_scenarios(as_json: Json = False) -> None:
    """The scenarios there are: the question each asks, its size and arms. A broken one is shown with what is wrong."""
    found = [_listed(path) for path in _all_files()]
    if as_json:
        print(json.dumps(found, indent=1))
        return
    from rich.markup import escape
    from rich.table import Table

    from bench.report.console import console

    if not found:
        raise fail("labctl: there is no scenario in scenarios/; write one with: labctl new NAME", EXIT_USAGE)
    grid = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    for title, side in (("name", "left"), ("hosts", "right"), ("rules", "right"), ("arms", "left")):
        grid.add_column(title, justify=side, overflow="fold")  # type: ignore[arg-type]
    grid.add_column("question", overflow="fold", ratio=1)
    for one in found:
        if one["problem"]:
            grid.add_row(escape(one["name"]), "", "", "[red]broken[/red]", escape(one["problem"]))
        else:
            grid.add_row(escape(one["name"]), str(one["hosts"]), str(one["rules"]), escape(", ".join(one["arms"])),
                         escape(one["question"]))
    console().print(grid)


def _all_files() -> list[Path]:
    """Every scenario file that has a name; one here hides one of the same name beside labctl."""
    files: dict[str, Path] = {}
    for directory in reversed(scenario_directories()):
        files |= {path.stem: path for path in sorted(directory.glob("*.yaml"))}
    return [files[name] for name in sorted(files)]


def _listed(path: Path) -> dict[str, Any]:
    from lab.scenario import ScenarioError, load

    one: dict[str, Any] = {"name": path.stem, "path": str(path), "question": question(path), "hosts": None,
                           "rules": None, "arms": None, "problem": None}
    try:
        found = load(path, arms=registry.names())
    except ScenarioError as err:
        more = f" (and {len(err.problems) - 1} more)" if len(err.problems) > 1 else ""
        return {**one, "problem": f"{err.problems[0]}{more}"}
    return {**one, "hosts": len(found.topology.hosts), "rules": len(found.policy.rules), "arms": list(found.arms)}


def question(path: Path) -> str:
    """What a scenario asks: the quoted sentence of its first comment, else that comment's first paragraph."""
    comment: list[str] = []
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        if not line.startswith("#"):
            break
        if "yaml-language-server:" not in line:
            comment.append(line.lstrip("#").strip())
    quoted = re.search(r'"([^"]+\?[^"]*)"', " ".join(comment))
    if quoted:
        return quoted[1]
    paragraph = " ".join(comment).strip() if "" not in comment else " ".join(comment[:comment.index("")]).strip()
    return paragraph or " ".join(comment).strip()


@app.command(epilog=epilog("labctl show three-tier", "labctl show three-tier --graph -o three-tier.svg",
                           "labctl show three-tier --json | jq .policy"))
def show(
    scenario: Named,
    graph: Annotated[bool, typer.Option("--graph", help="Draw it as SVG, to standard output or the file -o.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where the drawing goes.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every host and rule, however many.")] = False,
    as_json: Json = False,
) -> None:
    """What a scenario means: segments, hosts, processes and the policy in words, as a tree; or drawn."""
    from bench.report.tree import as_data, tree

    if (output is not None or as_json) and graph == as_json:
        raise fail("labctl: -o goes with --graph, and --graph not with --json", EXIT_USAGE)
    found = load_scenario(scenario)
    if as_json:
        print(json.dumps(as_data(found, question(Path(found.path))), indent=1))
    elif graph:
        _draw(found, output)
    else:
        from bench.report.console import console

        console().print(tree(found, question(Path(found.path)), everything=everything))


def _draw(scenario: Any, output: Path | None) -> None:
    from bench.report.graph import svg

    if output is None and sys.stdout.isatty():
        raise fail("labctl: a drawing is not for a terminal; name a file with -o, or redirect it", EXIT_USAGE)
    drawn = svg(scenario)
    if output is None:
        print(drawn, end="")
        return
    try:
        output.write_text(drawn)
    except OSError as err:
        raise fail(f"{output}: cannot be written: {err.strerror}; name another file with -o", EXIT_USAGE) from None
    print(f"wrote {output}", file=sys.stderr)


@app.command(epilog=epilog("labctl validate scenarios/*.yaml"))
def validate(
    scenarios: Annotated[list[str], typer.Argument(help="Scenario files, or names of those in scenarios/.",
                                                   autocompletion=complete.scenarios)],
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


@app.command(epilog=epilog("labctl schema > summary.schema.json", "labctl schema scenario > scenario.schema.json"))
def schema(
    of: Annotated[str, typer.Argument(help="'summary': of summary.json; 'scenario': of a scenario, for editors.",
                                      autocompletion=lambda: ["summary", "scenario"])] = "summary",
) -> None:
    """Print a JSON Schema: of a run's summary.json, or of scenario files, for editors that complete and check."""
    if of == "summary":
        from bench.report.summary import schema_text

        print(schema_text(), end="")
    elif of == "scenario":
        from lab.schema_json import schema_text as scenario_text

        print(scenario_text(registry.names()), end="")
    else:
        raise fail(f"labctl: there is no schema '{of}'; write summary or scenario", EXIT_USAGE)


@importers.command(epilog=epilog("labctl import compose compose.yaml -o shop.yaml",
                                 "labctl import compose compose.yaml --built-in -o shop.yaml"))
def compose(
    file: Annotated[Path, typer.Argument(help="The compose file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The scenario file to write.")],
    built_in: Annotated[bool, typer.Option(
        "--built-in", help="labctl's own services in place of the images: runs anywhere, and can be loaded.")] = False,
    name: Annotated[str | None, typer.Option(help="The scenario's name; the project's if left out.")] = None,
) -> None:
    """A compose file as a scenario: services, networks, ports, dependencies. What it cannot carry over is listed."""
    from lab.importers.compose import ComposeError, import_compose

    try:
        made = import_compose(file, built_in=built_in, name=name)
        output.write_text(made.text)
    except ComposeError as err:
        raise fail(str(err), EXIT_USAGE) from None
    except OSError as err:
        raise fail(f"{output}: cannot be written: {err.strerror}; name another file with -o", EXIT_USAGE) from None
    for text in made.left_out:
        print(f"not carried over: {text}", file=sys.stderr)
    for text in made.invented:
        print(f"made up: {text}", file=sys.stderr)
    print(f"wrote {output}; look at it with: labctl show {output}; run it with: labctl run {output}", file=sys.stderr)


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
    print(f"wrote {output}; run it with: labctl run {output}", file=sys.stderr)
