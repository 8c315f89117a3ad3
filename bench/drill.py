"""What failure and churn share: a lab on Mininet with a store for what comes of it, and arms that change live."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import environment, registry, testbeds
from bench.contract import EnforcerError, Guarded
from bench.instruments.onhost import ProgramError
from bench.instruments.probe import probe
from bench.store import ResultStore
from lab.backends import mininet_lab
from lab.backends.mininet_lab import MininetTestbed
from lab.backends.served import LabDownError
from lab.deploy.enforcement import DeployError
from lab.faults import FaultError
from lab.hosts.build import BuildError, build
from lab.hosts.control import ServiceError
from lab.hosts.roles import actors
from lab.isolation import RunIdentity, heed_interrupt, run_isolated
from lab.model import Flow, Outcome, Policy, Scenario, Topology
from lab.policy_sets import Oracle
from lab.users import one_user

Say = Callable[[str], None]
BASELINE = "none"
CONTROL_TRIES = 3


@dataclass(frozen=True, slots=True)
class Drill:
    """One run of either kind: what it is about, where it happens, where it is kept."""

    scenario: Scenario
    testbed: MininetTestbed
    store: ResultStore
    say: Say


Body = Callable[[Drill], Any]  # returns a document (dataclass or dict) to be kept and shown


def run(kind: str, scenario: Scenario, results: Path, flows: Callable[[Scenario], Sequence[Flow]], body: Body,
        show: Callable[[Any, str], None], say: Say) -> int:
    """Stand the scenario up, have `body` measure, keep its document as `<kind>.json`, show it. Status as documented.

    `flows`: those whose processes have to run beside what the scenario declares. `show` gets the document and where it
    is kept.
    """
    try:
        labhost = build()
    except BuildError as err:
        print(err, file=sys.stderr)
        return 3
    return run_isolated(lambda me: _inside(kind, scenario, results, flows, body, show, say, labhost, me), "run",
                        f"{scenario.name} ({kind})")


def _inside(kind: str, scenario: Scenario, results: Path, flows: Callable[[Scenario], Sequence[Flow]], body: Body,
            show: Callable[[Any, str], None], say: Say, labhost: Path, me: RunIdentity) -> int:
    if not me.several_users:
        scenario = replace(scenario, topology=one_user(scenario.topology))
    with ResultStore.create(results, scenario.name) as store:
        facts = {"run": me.run_id, "several_users": me.several_users, "cgroup2": me.cgroup is not None,
                 **environment.facts()}
        store.document("environment.json", facts)
        store.document("scenario.yaml", Path(scenario.path).read_text())
        try:
            say(f"standing up {len(scenario.topology.hosts)} hosts")
            who = actors(scenario.topology, flows(scenario))
            with mininet_lab.up(scenario.topology, labhost, me.cgroup, who) as testbed:
                found = body(Drill(scenario, testbed, store, heeding(say)))
                say("taking the lab down")
        except EnforcerError as err:
            print(f"labctl: {err}", file=sys.stderr)
            return 2
        except (LabDownError, DeployError, FaultError, ServiceError, ProgramError, OSError) as err:
            print(f"labctl: {err}", file=sys.stderr)
            return 3
        store.document(f"{kind}.json", plain(found))
    with contextlib.suppress(ValueError):
        show(found, str(store.directory.relative_to(Path.cwd())))
        return 0
    show(found, str(store.directory))
    return 0


def heeding(say: Say) -> Say:
    """`say`, which is called between steps, and so is where an interrupt that was swallowed is heeded."""
    def heed(text: str) -> None:
        heed_interrupt()
        say(text)
    return heed


def plain(found: object) -> dict[str, Any]:
    """A document as JSON says it."""
    made: dict[str, Any] = json.loads(json.dumps(asdict(found), default=str))  # type: ignore[call-overload]
    return made


# --- what is meant ---------------------------------------------------------------------------------


def intended(policy: Policy, topology: Topology, flows: Iterable[Flow]) -> dict[Flow, bool]:
    """By flow, whether the policy allows it."""
    chosen = tuple(flows)
    return {f: v.allow for f, v in zip(chosen, Oracle(policy, topology).verdicts(chosen), strict=True)}


def announced(enforcer: Guarded, policy: Policy, topology: Topology, flows: Iterable[Flow]) -> dict[Flow, bool]:
    """By flow, whether it is open by what the arm says of itself."""
    effective = enforcer.compile(policy, topology).effective
    meant = intended(effective, topology, flows)
    return {flow: allow or not enforcer.covers(flow, topology) for flow, allow in meant.items()}


def supported(scenario: Scenario, names: Sequence[str]) -> tuple[dict[str, Guarded], dict[str, str]]:
    """The arms that this machine can run, the baseline first, and of the others why not."""
    arms, unsupported = {}, {}
    for name in dict.fromkeys((BASELINE, *names)):
        enforcer = registry.load(name)
        if reason := testbeds.unsupported(scenario, enforcer):
            unsupported[name] = reason
        else:
            arms[name] = enforcer
    return arms, unsupported


def open_here(testbed: MininetTestbed, topology: Topology, flows: Sequence[Flow]) -> tuple[Flow, ...]:
    """The positive control: of these flows, those that are open each time with nothing enforced."""
    good = set(flows)
    for _ in range(CONTROL_TRIES):
        seen = probe(testbed.services, flows, topology).observations
        good &= {o.flow for o in seen if o.outcome is Outcome.OPEN}
    return tuple(flow for flow in flows if flow in good)


def numbered(flows: Sequence[Flow]) -> Mapping[Flow, int]:
    """What the raw timeline calls each flow."""
    return {flow: number for number, flow in enumerate(flows)}
