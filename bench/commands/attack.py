"""Commands about a result's other half: attack (how far an attacker gets), coverage (what was seen of it all)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
)

if TYPE_CHECKING:
    from bench.report.lateral import Lateral

app = typer.Typer()


@app.command(epilog=epilog("labctl attack results/three-tier/2026-11-23T002230Z", "labctl attack three-tier",
                           "labctl attack techniques --techniques", "labctl attack three-tier --every-foothold",
                           "labctl attack g21.yaml --every-foothold --shared",
                           codes=(EXIT_DONE, EXIT_USAGE, EXIT_MACHINE, EXIT_INTERRUPTED)))
def attack(
    what: Annotated[str, typer.Argument(
        metavar="RESULT|SCENARIO", help="A result's directory or summary.json: what was observed there. "
        "A scenario: what its arms say they will do; no packet is sent, unless an option says so.",
        autocompletion=complete.scenarios)],
    arms: Annotated[str, typer.Option(help="Of a scenario, only these arms, by comma; 'none' is always there.",
                                      autocompletion=complete.arms)] = "",
    try_techniques: Annotated[bool, typer.Option(
        "--techniques", help="With real packets, a lab an arm: MITRE ATT&CK techniques, as a table.")] = False,
    only: Annotated[str, typer.Option(help="Of the techniques, only these, by comma; what they need is theirs.")] = "",
    every_foothold: Annotated[bool, typer.Option(
        "--every-foothold", help="With real packets, a lab an arm: seeded campaigns from every process of every host.",
        )] = False,
    shared: Annotated[bool, typer.Option(
        "--shared", help="With these: every position scans and exploits once, and every foothold's reach follows from "
        "what was proven. For large networks.")] = False,
    all_vulnerable: Annotated[bool, typer.Option(
        "--all-vulnerable", help="With these: as if all that listens could be taken, not only what is declared.",
        )] = False,
    runs: Annotated[int, typer.Option(min=1, max=1000, help="Of every foothold, so many campaigns.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Blast radius from every foothold, ways to the crown jewels and what would cut them, how hard the goal is."""
    if try_techniques or every_foothold:
        from bench.commands import attack_live

        attack_live.run(what, arms, only if try_techniques else None, runs, all_vulnerable, as_json, shared)
        return
    if shared:
        raise fail("--shared is about --every-foothold; write both", EXIT_USAGE)
    saved = Path(what).is_dir() or Path(what).name == "summary.json"
    source, found = ("observed", _observed(Path(what))) if saved else ("expected", _expected(what, arms))
    if as_json:
        plain = {name: one.model_dump(mode="json") for name, one in found.items()}
        print(json.dumps({"source": source, "arms": plain}, indent=1))
        return
    from bench.report.console import console
    from bench.report.lateral import show

    told = "observed with real packets" if saved else "expected of what each arm says it does; no packet was sent"
    print(f"{what}: {told}\n")
    show(found, console())


def _observed(path: Path) -> dict[str, Lateral]:
    from bench.report.saved import SavedError, read

    try:
        summary = read(path).summary
    except SavedError as err:
        raise fail(str(err), EXIT_USAGE) from None
    found = {name: arm.lateral for name, arm in summary.arms.items() if arm.lateral is not None}
    if not found:
        raise fail(f"{path}: has no figures of lateral movement: its matrix was a sample, or an older labctl made it; "
                   f"for what is expected: labctl attack {summary.scenario}", EXIT_USAGE)
    return found


def _expected(name: str, arms: str) -> dict[str, Lateral]:
    from bench import lateral, registry
    from lab.policy import flows

    scenario = load_scenario(name)
    chosen = [a.strip() for a in arms.split(",") if a.strip()] or scenario.arms
    names = known_arms(tuple(dict.fromkeys(("none", *chosen))))
    every = [flow for flow in flows(scenario) if flow.proto == "tcp"]
    return lateral.laterals(scenario, lateral.expected(scenario, {n: registry.load(n) for n in names}, every))


@app.command(epilog=epilog("labctl coverage results/three-tier/2026-11-23T002230Z",
                           "labctl coverage RESULT --json | jq '.chokepoint.blind_spots'"))
def coverage(
    result: Annotated[Path, typer.Argument(help="A result's directory or its summary.json.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """The coverage map: by class of traffic, what each arm's telemetry saw of what was really done; its blind spots."""
    from bench.report.saved import SavedError, read

    try:
        summary = read(result).summary
    except SavedError as err:
        raise fail(str(err), EXIT_USAGE) from None
    arms = {name: arm for name, arm in summary.arms.items() if arm.coverage}
    if not arms:
        raise fail(f"{result}: has no coverage: an older labctl made it; run {summary.scenario} again", EXIT_USAGE)
    if as_json:
        print(json.dumps({name: arm.model_dump(mode="json", include={"coverage", "blind_spots"})
                          for name, arm in arms.items()}, indent=1))
        return
    from bench.report.console import console
    from bench.report.coverage import show

    show(arms, console())
