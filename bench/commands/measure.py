"""Commands that run again and compare: gate, replay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands import complete
from bench.commands.common import (
    EXIT_DEFECT,
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
    share,
)

app = typer.Typer()
_CODES = (EXIT_DONE, EXIT_DEFECT, EXIT_USAGE, EXIT_MACHINE, EXIT_INVALID, EXIT_INTERRUPTED)
Results = Annotated[Path, typer.Option(help="Where results are kept.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command(epilog=epilog(
    "labctl gate three-tier --baseline gate.json --update", "labctl gate three-tier --baseline gate.json",
    codes=_CODES, meaning={EXIT_DONE: "no regression", EXIT_DEFECT: "a regression, named",
                           EXIT_INVALID: "too noisy to tell"}))
def gate(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of one in scenarios/.",
                                            autocompletion=complete.scenarios)],
    baseline: Annotated[Path, typer.Option(help="The stored baseline.")],
    update: Annotated[bool, typer.Option("--update", help="Run, and store the outcome as the baseline.")] = False,
    arms: Annotated[str, typer.Option(help="With --update, only these arms, by comma; else those of the baseline run.",
                                      autocompletion=complete.arms)] = "",
    margin: Annotated[float, typer.Option(parser=share, metavar="SHARE",
                                          help="A regression of this size must not go unseen.")] = "10%",  # type: ignore[assignment]
    blocks: Annotated[int, typer.Option(min=10, max=1000, help="Cost blocks, the same for both runs.")] = 36,
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """Whether a scenario came out worse than a stored baseline: its verdicts, and its costs as ratios to 'none'."""
    from bench import gating
    from bench.analysis.gate import GateError, read
    from bench.experiment import Options
    from lab.isolation import IsolationError

    loaded = load_scenario(scenario)
    try:
        stored = None if update else read(_text(baseline), str(baseline))
        chosen = tuple(stored.ratios) if stored else tuple(a.strip() for a in arms.split(",") if a.strip())
        names = known_arms(tuple(dict.fromkeys(("none", *(chosen or loaded.arms)))))
        if len(names) < 2:
            raise fail("labctl: there is nothing to gate: name an arm beside none with --arms", EXIT_USAGE)
        packages_here()
        options = Options(arms=names, as_json=as_json, results=results.resolve(), blocks=blocks, extras_every=0,
                          seed=stored.seed if stored else None)
        if stored is None:
            raise typer.Exit(gating.store_baseline(loaded, options, baseline.resolve()))
        raise typer.Exit(gating.gate_scenario(loaded, options, stored, str(baseline), margin))
    except GateError as err:
        raise fail(f"labctl: {err}", EXIT_USAGE) from None
    except IsolationError as err:
        raise fail(str(err), EXIT_MACHINE) from None


def _text(baseline: Path) -> bytes:
    try:
        return baseline.read_bytes()
    except OSError as err:
        raise fail(f"{baseline}: cannot be read ({err.strerror}); store a baseline there with --update",
                   EXIT_USAGE) from None


@app.command(epilog=epilog(
    "labctl replay results/three-tier/2026-11-23T002230Z", "labctl replay three-tier --quick",
    codes=_CODES, meaning={EXIT_DONE: "the outcome agrees", EXIT_DEFECT: "it does not, named",
                           EXIT_INVALID: "the measurement is invalid, or costs cannot be judged"}))
def replay(
    result: Annotated[str, typer.Argument(
        metavar="RESULT", help="A result's directory, its summary.json, or a scenario: its newest.",
        autocompletion=complete.results)],
    quick: Annotated[bool, typer.Option("--quick", help="Fewer blocks than it had; marked as quick.")] = False,
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """Run a saved result again, with its scenario, seed and arms, and say whether the outcome agrees."""
    from bench import replaying
    from bench.report.saved import SavedError, newest, read
    from lab.isolation import IsolationError

    try:
        saved = read(Path(result)) if Path(result).exists() else newest(results, result)
        again = replaying.scenario_of(saved)
    except SavedError as err:
        raise fail(f"labctl: {err}", EXIT_USAGE) from None
    known_arms(tuple(saved.summary.arms))
    packages_here()
    try:
        raise typer.Exit(replaying.replay(saved, again, results.resolve(), quick=quick, as_json=as_json))
    except IsolationError as err:
        raise fail(str(err), EXIT_MACHINE) from None
