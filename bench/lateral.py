"""From what was open to how far an attacker gets: observed in a run, or expected of what each arm compiled to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench.analysis import paths, survival, walks
from bench.analysis.paths import DECLARED, Positions
from bench.analysis.walks import CAMPAIGNS, Walk
from bench.report import lateral as report
from lab.model import Enforcer, Flow, Observation, Outcome, Scenario
from lab.policy_sets import Oracle

BASELINE = "none"


def observed(observations: Iterable[Observation]) -> dict[Flow, bool]:
    """What a matrix says of every flow that was tried."""
    return {o.flow: o.outcome is Outcome.OPEN for o in observations}


def expected(scenario: Scenario, enforcers: Mapping[str, Enforcer],
             flows: Sequence[Flow]) -> dict[str, dict[Flow, bool]]:
    """What each arm says it will do, by flow whether it is open."""
    found = {}
    for name, enforcer in enforcers.items():
        effective = enforcer.compile(scenario.policy, scenario.topology).effective
        verdicts = Oracle(effective, scenario.topology).verdicts(flows)
        found[name] = {flow: verdict.allow or not enforcer.covers(flow, scenario.topology)
                       for flow, verdict in zip(flows, verdicts, strict=True)}
    return found


def laterals(scenario: Scenario, tried: Mapping[str, Mapping[Flow, bool]]) -> dict[str, report.Lateral]:
    """Every arm's figures; the baseline's campaigns are what the others' are held against."""
    campaigns = {name: _campaigns(scenario, one) for name, one in tried.items()}
    return {name: _lateral(scenario, one, campaigns[name], campaigns.get(BASELINE, ())) for name, one in tried.items()}


def _lateral(scenario: Scenario, tried: Mapping[Flow, bool], campaigns: Sequence[Walk],
             base: Sequence[Walk]) -> report.Lateral:
    topology, attack = scenario.topology, scenario.attack
    opened = [flow for flow, was_open in tried.items() if was_open]
    positions = {rule: Positions(opened, topology, takeable)
                 for rule, takeable in paths.rules(topology, scenario.seed).items()}
    way = None
    if attack is not None and attack.goals:
        found = positions[DECLARED].way((attack.foothold_host, attack.foothold_process), attack.goals)
        way = report.way(found, _reasons(scenario, found.close))
    return report.Lateral(spread={rule: report.spread(one.spread()) for rule, one in positions.items()}, way=way,
                          difficulty=_difficulty(campaigns, base, scenario.seed))


def _reasons(scenario: Scenario, flows: Sequence[Flow]) -> list[str]:
    """By which rule of the policy each flow is open; of those that it denies, that they are."""
    verdicts = Oracle(scenario.policy, scenario.topology).verdicts(flows)
    return [v.rule if v.allow else "" for v in verdicts]


def _campaigns(scenario: Scenario, tried: Mapping[Flow, bool]) -> tuple[Walk, ...]:
    attack = scenario.attack
    if attack is None or not attack.goals:
        return ()
    takeable = paths.vulnerable(scenario.topology)
    seeds = [scenario.seed * CAMPAIGNS + k for k in range(CAMPAIGNS)]
    return walks.Walks(tried, scenario.topology, takeable).run(
        (attack.foothold_host, attack.foothold_process), attack.goals, seeds)


def _difficulty(campaigns: Sequence[Walk], base: Sequence[Walk], seed: int) -> report.Difficulty | None:
    if not campaigns:
        return None
    attempts = _columns(campaigns)
    return report.Difficulty(
        attempts=report.middle(survival.middle(*attempts)),
        attempts_multiple=report.multiple(survival.multiple(*attempts, *_columns(base), seed)))


def _columns(campaigns: Sequence[Walk]) -> tuple[list[float], list[bool]]:
    return [float(walk.attempts) for walk in campaigns], [walk.reached for walk in campaigns]
