"""What every arm claims on every scenario, derived once more from what each technique can see.

The golden lists were counted by hand, for some scenarios. This covers all of them by a rule that needs no enforcer,
only the policy's oracle and the topology: a denied flow gets through where no enforcement point is on its way, and
where those that are cannot tell it from one that is allowed. Points that know addresses cannot tell two flows apart
that have the same hosts, service and family; points that know processes can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from bench import registry
from lab import policy
from lab.model import Enforcer, Flow, Host, Topology
from lab.policy_sets import Oracle
from lab.scenario import load

SCENARIOS = Path(__file__).parents[2] / "scenarios"
Wire = tuple[str, str, str, int, int]


@dataclass(frozen=True)
class Told:
    """A scenario as the rules need it. `alike`: what addresses cannot tell from something allowed."""

    topology: Topology
    flows: Sequence[Flow]
    allowed: Sequence[bool]
    alike: frozenset[Wire]

    def ends(self, flow: Flow) -> tuple[Host, Host]:
        return self.topology.hosts[flow.source], self.topology.hosts[flow.target]

    def denied(self) -> list[Flow]:
        return [flow for flow, allowed in zip(self.flows, self.allowed, strict=True) if not allowed]


def wire(flow: Flow) -> Wire:
    return flow.source, flow.target, flow.proto, flow.port, flow.family


@cache
def told(name: str) -> Told:
    scenario = load(SCENARIOS / f"{name}.yaml")
    topology, oracle, flows = scenario.topology, Oracle(scenario.policy, scenario.topology), policy.flows(scenario)
    allowed = [verdict.allow for verdict in oracle.verdicts(flows)]
    alike = {wire(flow) for flow, allow in zip(flows, allowed, strict=True) if allow}
    # Whether some process could do it, though none that runs there does.
    for one, flow in {wire(flow): flow for flow in flows if wire(flow) not in alike}.items():
        if any(verdict.allow for verdict in oracle.verdicts(as_others(flow, topology))):
            alike.add(one)
    return Told(topology, flows, allowed, frozenset(alike))


def as_others(flow: Flow, topology: Topology) -> list[Flow]:
    return [replace(flow, process=name, user=process.user, target_process=target if flow.proto != "icmp" else "")
            for name, process in topology.processes.items() for target in topology.processes]


def everything(_told: Told, _flow: Flow) -> bool:
    return True


def at_ports(told: Told, flow: Flow) -> bool:
    """A switch sees what leaves a host, and addresses of it."""
    return flow.source == flow.target or wire(flow) in told.alike


def at_the_router(told: Told, flow: Flow) -> bool:
    """A router sees what leaves a segment."""
    source, target = told.ends(flow)
    return source.segment == target.segment or wire(flow) in told.alike


def on_hosts(told: Told, flow: Flow) -> bool:
    """An agent that knows processes, on either end, stops it."""
    return not any(host.takes_agent for host in told.ends(flow))


def on_hosts_by_address(told: Told, flow: Flow) -> bool:
    return on_hosts(told, flow) or wire(flow) in told.alike


def both(told: Told, flow: Flow) -> bool:
    return on_hosts(told, flow) and at_ports(told, flow)


def both_by_address(told: Told, flow: Flow) -> bool:
    return on_hosts_by_address(told, flow) and at_ports(told, flow)


PASSES: dict[str, Callable[[Told, Flow], bool]] = {
    "none": everything, "agent-nft-monitor": everything, "agent-ebpf-monitor": everything,
    "agent-nft": on_hosts_by_address, "agent-ebpf": on_hosts, "agent-ebpf-node": on_hosts,
    "chokepoint": at_the_router, "hairpin": at_ports, "virtual-switch": at_ports, "virtual-switch-nft": at_ports,
    "virtual-switch-ovs": at_ports, "virtual-switch-ovs-userspace": at_ports,
    "unified": both, "unified-nft": both_by_address,
}


def claimed(enforcer: Enforcer, name: str) -> set[Flow]:
    """The denied flows that the arm owns up to."""
    scenario, found = load(SCENARIOS / f"{name}.yaml"), told(name)
    native = enforcer.compile(scenario.policy, scenario.topology)
    effective = Oracle(native.effective, scenario.topology).verdicts(found.flows)
    return {flow for flow, allowed, verdict in zip(found.flows, found.allowed, effective, strict=True)
            if not allowed and (verdict.allow or not enforcer.covers(flow, scenario.topology))}


def test_there_is_a_rule_for_every_arm() -> None:
    assert set(registry.names()) == set(PASSES)


@pytest.mark.parametrize("arm", sorted(PASSES))
@pytest.mark.parametrize("scenario", sorted(path.stem for path in SCENARIOS.glob("*.yaml")))
def test_the_gaps_are_those_of_the_technique(scenario: str, arm: str) -> None:
    found = told(scenario)
    wanted = {flow for flow in found.denied() if PASSES[arm](found, flow)}
    got = claimed(registry.load(arm), scenario)
    assert got == wanted, [str(flow) for flow in sorted(got ^ wanted, key=str)[:5]]


def test_a_rule_of_another_technique_does_not_hold() -> None:
    """The check above can fail: among devices that take no agent, each technique has gaps of its own."""
    found = told("unmanaged-devices")
    by_rule = {rule: frozenset(flow for flow in found.denied() if rule(found, flow)) for rule in set(PASSES.values())}
    assert len(set(by_rule.values())) == len(by_rule)
