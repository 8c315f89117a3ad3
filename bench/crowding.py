"""`labctl bottleneck`: more and more pairs of one segment talk at once, under each arm. One lab, every arm in turns."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from bench import environment, registry, testbeds
from bench.analysis.crowding import Curve, Point, curve
from bench.analysis.stats import percentile
from bench.arms import Arm
from bench.instruments import probe as prober
from bench.report import crowding as report
from bench.store import ResultStore
from lab.backends.base import Testbed
from lab.backends.served import LabDownError
from lab.deploy.enforcement import DeployError
from lab.hosts.attempts import Actor
from lab.hosts.build import BuildError, build
from lab.hosts.control import ServiceError
from lab.hosts.roles import actors
from lab.isolation import RunIdentity, run_isolated
from lab.model import STRANGER, Flow, Outcome, Scenario
from lab.policy import flows
from lab.policy_sets import Oracle

CHECKED, CHECK_TIMEOUT_S = 24, 0.5
MOST_STEPS = 8


@dataclass(frozen=True, slots=True)
class Options:
    """`rate`: connections a second that each pair offers, for `seconds` a window, `rounds` times."""

    arms: tuple[str, ...]
    rate: float = 2000.0
    seconds: float = 1.0
    rounds: int = 3
    seed: int = 1
    results: Path = Path("results")
    as_json: bool = False


@dataclass(slots=True)
class Found:
    points: list[Point] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    unsupported: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)  # arms whose policy was not in force beside a window


class CrowdError(RuntimeError):
    """The scenario has not what this takes; one line."""


def pairs_of(scenario: Scenario) -> tuple[Flow, ...]:
    """Flows within one segment that the policy allows, no host in two of them, in the scenario's order."""
    topology = scenario.topology
    near = [f for f in flows(scenario) if (f.proto, f.family) == ("tcp", 4) and f.source != f.target
            and STRANGER not in (f.process, f.target_process)
            and topology.hosts[f.source].segment == topology.hosts[f.target].segment]
    found: list[Flow] = []
    taken: set[str] = set()
    for flow, verdict in zip(near, Oracle(scenario.policy, topology).verdicts(near), strict=True):
        if verdict.allow and not taken & {flow.source, flow.target}:
            found.append(flow)
            taken |= {flow.source, flow.target}
    if len(found) < 2:
        raise CrowdError(f"{scenario.name}: fewer than two pairs of one segment may talk over TCP; labctl bottleneck "
                         "hairpin-bottleneck has twelve")
    return tuple(found)


def steps_of(most: int) -> tuple[int, ...]:
    """Numbers of pairs to try: all, or about MOST_STEPS of them, evenly; always one and all."""
    return tuple(sorted({round(1 + (most - 1) * n / (MOST_STEPS - 1)) for n in range(MOST_STEPS)}))


def run(scenario: Scenario, options: Options) -> int:
    """Measure and report. Exit status: 0, 3 (machine), 4 (a policy was not in force), 130."""
    try:
        labhost = build()
    except BuildError as err:
        print(err, file=sys.stderr)
        return 3
    return run_isolated(lambda me: _inside(scenario, options, labhost, me), "run", scenario.name)


def _inside(scenario: Scenario, options: Options, labhost: Path, me: RunIdentity) -> int:
    pairs, found = pairs_of(scenario), Found()
    enforcers = {name: registry.load(name) for name in options.arms}

    def say(text: str) -> None:
        print(f"labctl: {text}", file=sys.stderr, flush=True)

    try:
        with ResultStore.create(options.results, scenario.name) as store:
            say(f"standing up {len(scenario.topology.hosts)} hosts")
            with testbeds.up(scenario, enforcers.values(), labhost, me, actors(scenario.topology), None) as testbed:
                _measure(scenario, options, pairs, testbed, found, say)
            found.curves = [curve(name, found.points) for name in options.arms if name not in found.unsupported]
            told = {"scenario": scenario.name, "seed": options.seed, "rate": options.rate, "seconds": options.seconds,
                    "rounds": options.rounds, **asdict(found), "environment": environment.facts()}
            store.document("bottleneck.json", told)
            store.document("bottleneck.svg", report.drawn(found.curves))
            where = store.directory
    except KeyboardInterrupt:
        return 130
    except (LabDownError, DeployError, ServiceError, OSError) as err:
        print(f"labctl: {err}", file=sys.stderr)
        return 3
    report.show(found.curves, found.unsupported, found.broken, where, as_json=told if options.as_json else None)
    return 4 if found.broken else 0


def _measure(scenario: Scenario, options: Options, pairs: Sequence[Flow], testbed: Testbed, found: Found,
             say: Callable[[str], None]) -> None:
    """Rounds of every arm in a shuffled order, each with every number of pairs in a shuffled order."""
    rng, ready = random.Random(options.seed), []
    for name in options.arms:
        enforcer = registry.load(name)
        if reason := testbeds.unsupported(scenario, enforcer):
            found.unsupported[name] = reason
            continue
        native = enforcer.compile(scenario.policy, scenario.topology)
        place = testbed.enforcement(name, lambda flow, e=enforcer: e.covers(flow, scenario.topology))  # type: ignore[misc]
        place.install(native, enforcer.render(native, scenario.topology))
        place.down()
        ready.append(Arm(name, enforcer, native, place))
    for number in range(options.rounds):
        for arm in rng.sample(ready, len(ready)):
            say(f"round {number + 1} of {options.rounds}: {arm.name}")
            arm.enforcement.up()
            try:
                holds = _in_force(arm, scenario, testbed, rng)
                for count in rng.sample(steps_of(len(pairs)), len(steps_of(len(pairs)))):
                    found.points.append(_window(arm.name, number, pairs[:count], options, testbed))
                if not (holds and _in_force(arm, scenario, testbed, rng)) and arm.name not in found.broken:
                    found.broken.append(arm.name)
            finally:
                arm.enforcement.down()


def _window(arm: str, number: int, pairs: Sequence[Flow], options: Options, testbed: Testbed) -> Point:
    """All these pairs beside each other, each at its own rate."""
    def one(flow: Flow) -> tuple[int, int, float, list[float]]:
        address = testbed.topology.hosts[flow.target].v4
        done = testbed.services.crr(Actor(flow.source, flow.process, flow.user), 4, address, flow.port,
                                    options.seconds, options.rate)
        return done.n, done.errors, done.elapsed_s, done.latencies_us.tolist()

    with ThreadPoolExecutor(len(pairs)) as pool:
        done = list(pool.map(one, pairs))
    times = np.array([took for *_, every in done for took in every] or [options.seconds * 1e6])
    return Point(arm, number, len(pairs), options.rate * len(pairs), sum(n / elapsed for n, _, elapsed, _ in done),
                 sum(errors for _, errors, _, _ in done), percentile(times, 50) or 0.0, percentile(times, 99) or 0.0)


def _in_force(arm: Arm, scenario: Scenario, testbed: Testbed, rng: random.Random) -> bool:
    """Whether some flows that the arm says it denies are denied, and others that it allows are open."""
    every = flows(scenario)
    verdicts = Oracle(arm.native.effective, scenario.topology).verdicts(every)
    open_ = [f for f, v in zip(every, verdicts, strict=True)
             if v.allow or not arm.enforcer.covers(f, scenario.topology)]
    shut = sorted(set(every) - set(open_))
    some = rng.sample(shut, min(CHECKED, len(shut))) + rng.sample(open_, min(CHECKED, len(open_)))
    got = prober.probe(testbed.services, some, scenario.topology, timeout_s=CHECK_TIMEOUT_S).observations
    denied = set(shut)
    return all((o.outcome is not Outcome.OPEN and not o.arrived) if o.flow in denied else o.outcome is Outcome.OPEN
               for o in got)
