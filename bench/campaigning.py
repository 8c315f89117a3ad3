"""`labctl attack --every-foothold`: seeded campaigns with real packets from every process, for each arm in one lab."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from bench.analysis import survival
from bench.analysis.visibility import match
from bench.attack_labs import FAILURES, Lab, Say, Tell, each, standing
from bench.instruments import attack as attacker
from bench.instruments.attack import Campaign
from bench.report.campaigns import Arm, Campaigns, Made
from bench.report.lateral import middle
from lab import confines
from lab.isolation import RunIdentity, heed_interrupt
from lab.model import Scenario, Sighting, Topology, Truth

RUN_SEEDS = 1000  # seeds of one scenario's campaigns lie so far apart from those of another's


def footholds(topology: Topology) -> list[tuple[str, str]]:
    """Every process of every host that is not external."""
    return [(host.name, name) for host in topology.hosts.values() if not host.external for name in host.runs]


def everything_vulnerable(scenario: Scenario) -> Scenario:
    """The scenario with every built-in service open to the exploit, as if nothing were ever patched."""
    topology = scenario.topology
    processes = {name: replace(one, vulnerable=bool(one.listens) and not one.real)
                 for name, one in topology.processes.items()}
    return replace(scenario, topology=replace(topology, processes=processes))


def campaigns(scenario: Scenario, arms: Sequence[str], runs: int, say: Say) -> Campaigns:
    """`runs` campaigns from every foothold under every arm. Raises AttackError."""
    made: dict[str, list[Made]] = {}
    notes: dict[str, dict[str, object]] = {}

    def take(arm: str, message: dict[str, object]) -> None:
        made.setdefault(arm, [])
        if "made" in message:
            made[arm].append(Made.model_validate(message["made"]))
        else:
            notes.setdefault(arm, {}).update({k: v for k, v in message.items() if k in Arm.model_fields})

    def work(arm: str, me: RunIdentity, tell: Tell) -> int:
        with standing(scenario, arm, me, say, tell) as lab:
            if lab is not None:
                tell({"devices": confines.check(lab.testbed)})
                _all(lab, runs, say, tell)
        return 0

    interrupted = each(scenario, arms, work, take)
    return Campaigns(scenario=scenario.name, runs=runs, interrupted=interrupted,
                     arms={arm: _summed(scenario, one, notes.get(arm, {})) for arm, one in made.items()})


def _all(lab: Lab, runs: int, say: Say, tell: Tell) -> None:
    """Every campaign, told as it ends; then what telemetry saw of them all."""
    scenario, truths = lab.scenario, list[Truth]()
    assert scenario.attack is not None
    places = footholds(scenario.topology)
    try:
        for index, (host, process) in enumerate(places):
            say(f"{lab.enforcer.name}: foothold {index + 1} of {len(places)}: {host}/{process}")
            for run in range(runs):
                heed_interrupt()
                attack = replace(scenario.attack, foothold_host=host, foothold_process=process)
                campaign = attacker.run(lab.testbed.services, attack, scenario.topology,
                                        scenario.seed * RUN_SEEDS + run)
                truths += campaign.truths
                tell({"made": _made(f"{host}/{process}", campaign, attack.goals).model_dump()})
    finally:  # an interrupt keeps what was made
        with contextlib.suppress(*FAILURES):
            tell(_noticed(truths, _sighted(lab)))


def _made(foothold: str, campaign: Campaign, goals: Sequence[str]) -> Made:
    here = foothold.partition("/")[0]
    first = next((step for step in campaign.steps if step.target in goals), None)
    return Made(foothold=foothold, taken=len(campaign.taken) - 1, by_process=len(campaign.by_process) - 1,
                at_goal=here in goals, reached=campaign.reached, attempts=campaign.attempts,
                attempts_to_goal=first.attempts if first else None, seconds_to_goal=campaign.time_to_goal_s)


def _sighted(lab: Lab) -> list[Sighting]:
    return [one for point, lines in lab.place.collect().items() for one in lab.enforcer.sightings(point, lines)]


def _noticed(truths: Sequence[Truth], sightings: Sequence[Sighting]) -> dict[str, object]:
    """Attempts, how many of them were blocked, seen and alerted on, and how soon after the attempt itself."""
    matches, _unexplained = match(truths, sightings)
    alerts = [(one.truth, [s.time for s in one.sightings if s.verdict in ("deny", "would-deny")]) for one in matches]
    delays = sorted(max(0.0, min(times) - truth.start) for truth, times in alerts if times)
    return {"attempts": len(truths), "seen": sum(bool(one.sightings) for one in matches), "alerted": len(delays),
            "blocked": sum(t.outcome != "OPEN" and not t.arrived for t in truths),
            "alert_delay_s": delays[(len(delays) - 1) // 2] if delays else None}


def _summed(scenario: Scenario, made: Sequence[Made], notes: dict[str, object]) -> Arm:
    """Shares of the other hosts, by foothold; attempts and time to the goal, from every foothold that is not there."""
    others = max(1, sum(not host.external for host in scenario.topology.hosts.values()) - 1)
    away = [one for one in made if not one.at_goal]
    reached = [one.reached for one in away]
    attempts = [float(one.attempts_to_goal or one.attempts) for one in away]
    ends = [one.seconds_to_goal or 0.0 for one in away]
    latest = max(ends, default=0.0)  # those that never got there are censored at the longest that was seen
    seconds = [end if hit else latest for end, hit in zip(ends, reached, strict=True)]
    return Arm(**notes, made=tuple(made), shares=tuple(one.taken / others for one in made),
               attempts_to_goal=middle(survival.middle(attempts, reached)) if away else None,
               seconds_to_goal=middle(survival.middle(seconds, reached)) if away else None)
