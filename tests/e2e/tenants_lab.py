"""Two tenants with the same addresses at one virtual switch, told apart or, planted, taken for one. Runs isolated."""

from __future__ import annotations

from dataclasses import replace

from bench.instruments.probe import probe
from enforcers.agentless.virtual_switch import VirtualSwitch
from lab.backends.mininet_lab import up
from lab.hosts.build import build
from lab.hosts.roles import actors
from lab.isolation import RunIdentity
from lab.policy import flows
from lab.policy_sets import Oracle
from lab.scenario import load
from tests.e2e.switch_lab import ROOT


def verdicts(me: RunIdentity, confused: bool) -> dict[str, list[str]]:
    """Flows between hosts that ended otherwise than the policy says: those it allows, and those it denies."""
    scenario = load(ROOT / "scenarios" / "overlapping-tenants.yaml")
    topology, arm = scenario.topology, VirtualSwitch()
    tried = [flow for flow in flows(scenario) if flow.source != flow.target]
    with up(topology, build(), me.cgroup, actors(topology, tried)) as testbed:
        native = arm.compile(scenario.policy, topology)
        if confused:
            native = replace(native, rules={point: text.replace('"tenant": 2', '"tenant": 1')
                                            for point, text in native.rules.items()})
        place = testbed.enforcement(arm.name, lambda flow: arm.covers(flow, topology))
        place.install(native, arm.render(native, topology))
        seen = probe(testbed.services, tried, topology, timeout_s=0.5).observations
    meant = Oracle(scenario.policy, topology).verdicts(tried)
    wrong = [(verdict.allow, str(one.flow)) for verdict, one in zip(meant, seen, strict=True)
             if (one.outcome == "OPEN") != verdict.allow]
    return {"allowed": [flow for allow, flow in wrong if allow], "denied": [flow for allow, flow in wrong if not allow]}
