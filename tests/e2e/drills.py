"""Failure and churn on real packets, as the commands carry them out. Runs isolated."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import churn, drill, failure
from bench.analysis.churning import STEPS
from bench.analysis.failures import Design
from bench.contract import Guarded
from bench.drill import Drill
from bench.report.console import console
from bench.store import ResultStore, read
from lab.backends import mininet_lab
from lab.backends.mininet_churn import joining
from lab.hosts.build import build
from lab.hosts.roles import actors
from lab.isolation import RunIdentity
from lab.scenario import load
from tests.e2e.fragile import Fragile
from tests.e2e.isolated import ROOT

ARMS = drill.registry.names()
DESIGN = Design(hold_s=1.5, before_s=0.6, after_s=1.0)


def _load(name: str) -> Guarded:
    return Guarded("fragile", Fragile()) if name == "fragile" else _registered(name)


_registered = drill.registry.load


def _on(me: RunIdentity, name: str, measure: Any) -> Any:
    drill.registry.load = _load
    scenario = load(ROOT / f"scenarios/{name}.yaml", arms=ARMS)
    who = actors(scenario.topology, failure.chosen(scenario))
    with ResultStore.create(Path("/run/results"), name) as store, \
            mininet_lab.up(scenario.topology, build(), me.cgroup, who) as testbed:
        found = measure(Drill(scenario, testbed, store, lambda _text: None))
    return found, store.directory


def failures(me: RunIdentity, _argument: object) -> dict[str, Any]:
    """none, the planted arm and an agent whose rules the kernel keeps: killed, and with the policy changed."""
    report, directory = _on(me, "single-point-of-failure", lambda it: failure.measure(
        it, ("fragile", "agent-nft"), ("kill", "partition"), DESIGN))
    timeline = list(read(directory / "timeline.jsonl.gz"))
    from bench.report.failure import show

    show(report, console())
    return {"report": drill.plain(report), "tries": len(timeline), "fields": sorted(timeline[0]),
            "watched": len(report.flows), "episodes": len(list(read(directory / "episodes.jsonl.gz")))}


def churned(me: RunIdentity, _argument: object) -> dict[str, Any]:
    """One round under none, the planted arm, a host's agent and the chokepoint."""
    report, directory = _on(me, "ephemeral", lambda it: churn.measure(it, ("fragile", "agent-nft", "chokepoint"), 1))
    from bench.report.churn import show

    show(report, console())
    steps = {name: {step: drill.plain(arm.steps[step][0]) for step in STEPS} for name, arm in report.arms.items()}
    return {"unsupported": dict(report.unsupported), "steps": steps,
            "tries": len(list(read(directory / "timeline.jsonl.gz")))}


def joined(me: RunIdentity, _argument: object) -> dict[str, Any]:
    """A host joins, moves and leaves: what it sees, whom it reaches, what is left."""
    scenario = load(ROOT / "scenarios/ephemeral.yaml", arms=ARMS)
    plan = next(churn.plans(scenario, 1))
    topology = scenario.topology
    with mininet_lab.up(topology, build(), me.cgroup, actors(topology)) as testbed, joining(testbed) as lab:
        known = set(Path("/sys/class/net").iterdir())
        begin = time.monotonic()
        lab.join(plan.newcomer)
        took = time.monotonic() - begin
        there = testbed.run("newcomer", ["ls", "/run/switch"]).stdout.decode().split()
        flows = [*plan.denied, *plan.allowed]
        first = set(drill.open_here(testbed, testbed.topology, flows))
        lab.move(plan.moved)
        second = set(drill.open_here(testbed, testbed.topology, flows))
        addresses = json.loads(testbed.run("newcomer", ["ip", "-j", "addr", "show", "dev", "eth0"]).stdout)[0]
        lab.leave("newcomer")
        neighbours = testbed.run("router", ["ip", "neigh"]).stdout.decode()
        return {"seconds": took, "switch": there, "wanted": len(flows), "first": len(first), "second": len(second),
                "addresses": [a["local"] for a in addresses["addr_info"]], "moved": [plan.moved.v4, plan.moved.v6],
                "left": [str(p) for p in set(Path("/sys/class/net").iterdir()) - known],
                "neighbours": [a for a in (plan.newcomer.v4, plan.moved.v4, plan.moved.v6) if a in neighbours],
                "groups": [p.name for p in me.cgroup.iterdir() if "newcomer" in p.name] if me.cgroup else []}


def late(me: RunIdentity, _argument: object) -> dict[str, str]:
    """A host joins when agent-ebpf's programs watch the lab already; a rule names a process that runs there by then."""
    from bench.instruments.probe import probe
    from lab import features
    from lab.backends.mininet_churn import with_host
    from lab.deploy.live import LiveEnforcement
    from lab.model import Flow

    enforcer = _registered("agent-ebpf")
    if reason := features.missing(enforcer.needs()):
        return {"skip": reason}
    scenario = load(ROOT / "scenarios/ephemeral.yaml", arms=ARMS)
    topology, plan = scenario.topology, next(churn.plans(scenario, 1))
    like = topology.hosts["worker"]
    new = replace(plan.newcomer, segment=like.segment, labels=like.labels, runs=like.runs, v4="10.60.1.99",
                  v6="fd60:1::99")
    with mininet_lab.up(topology, build(), me.cgroup, actors(topology)) as testbed, joining(testbed) as lab:
        arm = LiveEnforcement(testbed, "agent-ebpf")
        arm.up(enforcer.render(enforcer.compile(scenario.policy, topology), topology))
        try:
            lab.join(new)
            known = with_host(topology, new)
            arm.update(enforcer.render(enforcer.compile(scenario.policy, known), known))
            flows = [Flow(new.name, who, user, "db", "store", "tcp", 5432, 4)
                     for who, user in (("jobs", "jobs"), ("(stranger)", "nobody"))]
            return {o.flow.process: o.outcome.value for o in probe(testbed.services, flows, known).observations}
        finally:
            arm.down()
