"""The compiled tables decide as the oracle does, over random worlds; where they cannot, it is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, given, settings

from enforcers.agent.ebpf.classes import Rules
from enforcers.agent.ebpf.effective import effective
from lab.model import Flow, Policy, Topology
from lab.policy import decide, flows, names_owner
from lab.scenario import load
from tests.unit.ebpf_model import NO_UID, Hosts
from tests.unit.test_enforcers import managed_worlds
from tests.unit.worlds import worlds

ROOT = Path(__file__).parents[2]
thoroughly = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@given(worlds(flow_count=150))
@thoroughly
def test_between_agents_the_tables_decide_as_the_policy_is_written(world: tuple[Topology, Policy, list[Flow]]) -> None:
    """Every protocol within a host; TCP and ICMP between hosts."""
    topology, policy, some = world
    hosts = Hosts(Rules(policy, topology))
    for flow in (one for one in some if one.user not in NO_UID):
        if flow.proto != "udp" or flow.source == flow.target:
            assert hosts.allows(flow) == decide(policy, flow, topology).allow, flow


@given(managed_worlds())
@thoroughly
def test_the_tables_decide_as_effective_says_wherever_an_agent_is(world: tuple[Topology, Policy, list[Flow]]) -> None:
    topology, policy, some = world
    hosts = Hosts(Rules(policy, topology))
    meant, said = effective(policy, topology)
    for flow in (one for one in some if one.user not in NO_UID):
        if topology.hosts[flow.source].takes_agent or topology.hosts[flow.target].takes_agent:
            assert hosts.allows(flow) == decide(meant, flow, topology).allow, flow
            if hosts.allows(flow) != decide(policy, flow, topology).allow:
                assert said, flow


@given(worlds(flow_count=0))
@thoroughly
def test_nothing_is_bent_where_every_host_has_an_agent_and_no_datagram_needs_both_ends(
        world: tuple[Topology, Policy, list[Flow]]) -> None:
    topology, policy, _ = world
    rules = tuple(rule for rule in policy.rules if not names_owner(rule.target))
    written = replace(policy, rules=rules)
    assert effective(written, topology) == (written, ())


def test_three_tier_is_enforced_as_written() -> None:
    scenario = load(str(ROOT / "scenarios/three-tier.yaml"))
    assert effective(scenario.policy, scenario.topology) == (scenario.policy, ())
    hosts = Hosts(Rules(scenario.policy, scenario.topology))
    for flow in flows(scenario):
        if flow.source != "cam" or flow.target != "cam":
            assert hosts.allows(flow) == decide(scenario.policy, flow, scenario.topology).allow, flow

