"""`labctl failure`: each arm in place, a continuous probe, one fault at a time: leak-seconds and outage-seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bench import drill
from bench.analysis import failures, watched
from bench.analysis.failures import Design, Meant, Report, Row
from bench.contract import Guarded
from bench.drill import Drill
from bench.episode import FAULTS, Episode, Subject
from bench.instruments.pulse import Pulse
from lab.deploy.enforcement import DeployError
from lab.deploy.live import LiveEnforcement
from lab.faults import FaultError
from lab.model import Flow, Scenario
from lab.policy import flows

WAYS = ("as it comes", "fails open", "fails closed")


def chosen(scenario: Scenario) -> tuple[Flow, ...]:
    """The flows to watch, before the positive control."""
    topology = scenario.topology
    return watched.choose(drill.intended(scenario.policy, topology, flows(scenario)), topology, scenario.seed)


def measure(it: Drill, names: Sequence[str], kinds: Sequence[str], design: Design) -> Report:
    """Every arm in every way it can be set to fail, under every fault."""
    scenario = it.scenario
    arms, unsupported = drill.supported(scenario, names)
    asked = chosen(scenario)
    watching = drill.open_here(it.testbed, scenario.topology, asked)
    notes = [f"not watched, since not open with nothing enforced: {flow}" for flow in asked if flow not in watching]
    meant = drill.intended(scenario.policy, scenario.topology, watching)
    for word, wanted in (("denied", False), ("allowed", True)):
        if wanted not in meant.values():
            raise FaultError(f"{scenario.name}: no {word} flow to a declared service is open with nothing enforced")
    rows = []
    for subject in _subjects(scenario, arms, watching, design.point):
        for fault in kinds:
            it.say(f"{subject.arm}{'' if subject.way == WAYS[0] else ', ' + subject.way}: {fault}")
            rows.append(_episode(it, subject, fault, design))
    return Report(scenario.name, scenario.seed, design, tuple((str(flow), allow) for flow, allow in meant.items()),
                  tuple(rows), unsupported, tuple(notes))


def _subjects(scenario: Scenario, arms: Mapping[str, Guarded], watching: Sequence[Flow],
              point: str | None) -> Iterator[Subject]:
    topology, policy = scenario.topology, scenario.policy
    meant = drill.intended(policy, topology, watching)
    for name, plain in arms.items():
        ways = {WAYS[0]: plain, WAYS[1]: plain.failing("open"), WAYS[2]: plain.failing("closed")}
        for way, enforcer in ways.items():
            if enforcer is None:
                continue
            native = enforcer.compile(policy, topology)
            deployment = enforcer.render(native, topology)
            points = tuple(p for p in deployment if point in (None, p.host))
            yield Subject(name, way, enforcer, deployment, native.neighbours == "asked",
                          Meant(meant, drill.announced(enforcer, policy, topology, watching)), points)


def _episode(it: Drill, subject: Subject, fault: str, design: Design) -> Row:
    arm = LiveEnforcement(it.testbed, subject.arm)
    watching = list(subject.meant.intended)
    try:
        arm.up(subject.deployment, asked=subject.asked)
        episode = Episode(it, subject, arm, design)
        with Pulse(it.testbed.services, it.scenario.topology, watching, design.rate) as pulse:
            episode.run(fault)
        judged = failures.judge(pulse.beats, episode.times, subject.meant, episode.after)
        numbers = drill.numbered(watching)
        it.store.append("timeline", (
            {"flow": numbers[b.flow], "tick": b.tick, "t": round(b.start - episode.times.fault, 6),
             "outcome": str(b.outcome), "errno": b.errno, "arrived": b.arrived, "took_us": b.took_us}
            for b in sorted(pulse.beats, key=lambda b: b.start)), arm=subject.arm, way=subject.way, fault=fault)
        it.store.append("episodes", [episode.as_data(numbers)], arm=subject.arm, way=subject.way, fault=fault)
        return Row(subject.arm, subject.way, fault, judged, judged.invalid, tuple(episode.acted))
    except (FaultError, DeployError) as err:  # one that does not come back is a finding, and no reason to stop
        return Row(subject.arm, subject.way, fault, None, str(err))
    finally:
        arm.down()


__all__ = ["FAULTS", "Design", "Report", "Row", "chosen", "measure"]
