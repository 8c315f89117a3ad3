"""Commands about saved results: results, compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.commands import complete
from bench.commands.common import EXIT_USAGE, epilog, fail

app = typer.Typer()
Where = Annotated[Path, typer.Option("--results", help="Where results are kept.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command("results", epilog=epilog("labctl results", "labctl results --json | jq -r '.[0].path'"))
def list_results(results: Where = Path("results"), as_json: Json = False) -> None:
    """Saved results, newest first: scenario, when, arms, and marks: quick, interrupted, invalid, defects."""
    from bench.report.saved import entries

    if not results.is_dir():
        raise fail(f"{results}: there is no such directory; name another with --results", EXIT_USAGE)
    found = entries(results)
    if as_json:
        print(json.dumps([entry.as_data() for entry in found], indent=1))
        return
    if not found:
        print(f"there are no results in {results}; make one with: labctl run SCENARIO")
        return
    from bench.report.compare_text import listing
    from bench.report.console import console

    console().print(listing(found))


@app.command(epilog=epilog("labctl compare results/three-tier/2026-11-2*", "labctl compare old/summary.json three-tier",
                           "labctl compare a b --json | jq '.arms[][] | select(.differs | any)'"))
def compare(
    which: Annotated[list[str], typer.Argument(
        metavar="RESULT...", help="Two or more: a result's directory, its summary.json, or a scenario: its newest.",
        autocompletion=complete.results)],
    results: Where = Path("results"),
    as_json: Json = False,
) -> None:
    """Results side by side, arm by arm. Costs as ratios to 'none' only; a difference is marked beyond the intervals."""
    from bench.report.compare import compare as compared
    from bench.report.saved import SavedError, newest, read

    if len(which) < 2:
        raise fail("labctl: to compare takes two results or more; labctl results shows what there is", EXIT_USAGE)
    try:
        found = compared([read(Path(name)) if Path(name).exists() else newest(results, name) for name in which])
    except SavedError as err:
        raise fail(str(err), EXIT_USAGE) from None
    if as_json:
        print(json.dumps(found.as_data(), indent=1))
        return
    from bench.report.compare_text import show
    from bench.report.console import console

    show(found, console())
