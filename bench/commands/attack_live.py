"""`labctl attack` with real packets: techniques against arms, campaigns from every foothold."""

from __future__ import annotations

import sys

import typer

from bench.commands.common import (
    EXIT_INTERRUPTED,
    EXIT_INVALID,
    EXIT_MACHINE,
    EXIT_USAGE,
    fail,
    known_arms,
    load_scenario,
    packages_here,
)
from lab.model import Scenario


def run(name: str, arms: str, only: str | None, runs: int, all_vulnerable: bool, as_json: bool,
        shared: bool = False) -> None:
    """Techniques (`only` some, "": all), or with None campaigns. Prints; raises typer.Exit where not all went well."""
    from bench.attack_labs import AttackError
    from lab.hosts.build import BuildError

    scenario = load_scenario(name)
    if scenario.attack is None:
        raise fail(f"{name}: has no attack; write one: attack: {{foothold: …, goal: …}}", EXIT_USAGE)
    if scenario.backend != "mininet":
        raise fail(f"{name}: stands on containers, where the attacker cannot act; use another scenario", EXIT_USAGE)
    chosen = [a.strip() for a in arms.split(",") if a.strip()] or scenario.arms
    names = known_arms(tuple(dict.fromkeys(("none", *chosen))))
    packages_here()
    if all_vulnerable:
        from bench.campaigning import everything_vulnerable

        scenario = everything_vulnerable(scenario)
    try:
        if only is not None:
            interrupted = _techniques(scenario, names, only, as_json)
        elif shared:
            interrupted = _shared(scenario, names, as_json)
        else:
            interrupted = _campaigns(scenario, names, runs, as_json)
    except (AttackError, BuildError) as err:
        raise fail(f"labctl: {err}", EXIT_MACHINE) from None
    if interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


def _say(text: str) -> None:
    print(f"labctl: {text}", file=sys.stderr, flush=True)


def _techniques(scenario: Scenario, arms: tuple[str, ...], only: str, as_json: bool) -> bool:
    from bench import attacking
    from bench.attacks.catalogue import TECHNIQUES
    from bench.report.console import console
    from bench.report.techniques import show

    wanted = {one.strip() for one in only.split(",") if one.strip()}
    names = {one.name for one in TECHNIQUES}
    if unknown := sorted(wanted - names):
        listed = ", ".join(one.name for one in TECHNIQUES)
        raise fail(f"labctl: there is no technique '{unknown[0]}'; there are: {listed}", EXIT_USAGE)
    found = attacking.techniques(scenario, arms, [t for t in TECHNIQUES if not wanted or t.name in wanted], _say)
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        show(found, TECHNIQUES, console())
    return found.interrupted


def _campaigns(scenario: Scenario, arms: tuple[str, ...], runs: int, as_json: bool) -> bool:
    from bench import campaigning
    from bench.report.campaigns import show
    from bench.report.console import console

    found = campaigning.campaigns(scenario, arms, runs, _say)
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        show(found, console())
    return found.interrupted


def _shared(scenario: Scenario, arms: tuple[str, ...], as_json: bool) -> bool:
    from bench import surveying
    from bench.report.console import console
    from bench.report.shared import show

    found = surveying.shared(scenario, arms, _say)
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        show(found, console())
    if found.invalid and not found.interrupted:
        raise typer.Exit(EXIT_INVALID)
    return found.interrupted
