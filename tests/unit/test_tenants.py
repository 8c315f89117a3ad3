"""Tenants with the same addresses: told apart in scenarios, flows, what arms compile to, and what telemetry says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import registry, testbeds
from bench.analysis.visibility import match
from enforcers.agent.agent_nft import AgentNft
from enforcers.agentless.virtual_switch import VirtualSwitch
from lab.backends import mininet_net
from lab.model import Point, Sighting, Truth
from lab.policy import flows
from lab.policy_sets import Oracle
from lab.scenario import ScenarioError, load, loads

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "scenarios" / "overlapping-tenants.yaml").read_text()
SCENARIO = load(ROOT / "scenarios" / "overlapping-tenants.yaml")
TOPOLOGY = SCENARIO.topology
HOSTS = TOPOLOGY.hosts


def problems(text: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        loads(text, "it.yaml")
    return "\n".join(str(problem) for problem in caught.value.problems)


def test_one_address_has_two_hosts() -> None:
    assert HOSTS["red-web"].v4 == HOSTS["blue-db"].v4 and HOSTS["red-web"].v6 == HOSTS["blue-db"].v6
    assert HOSTS["red-web"].mac != HOSTS["blue-db"].mac
    assert set(TOPOLOGY.seen_by("red-web").hosts) == {"red-web", "red-db"}
    assert TOPOLOGY.tenants == ("red", "blue")


def test_a_topology_without_tenants_is_what_it_was() -> None:
    plain = load(ROOT / "scenarios" / "three-tier.yaml").topology
    assert plain.seen_by("web-1") is plain and plain.tenants == ("",)


def test_no_flow_goes_from_one_to_the_other_by_either_count() -> None:
    every = flows(SCENARIO)
    assert every and not [f for f in every if TOPOLOGY.tenant(f.source) != TOPOLOGY.tenant(f.target)]
    oracle = Oracle(SCENARIO.policy, TOPOLOGY)
    assert {(f.source, f.target) for f, v in zip(every, oracle.verdicts(every), strict=True) if v.allow} == {
        ("red-web", "red-db"), ("blue-web", "blue-db")}


@pytest.mark.parametrize(("old", "new", "said"), [
    ("tenant: blue}", "tenant: red}", "overlaps 10.44.0.0/24 of segment 'red-lan'"),
    ("v4: 10.44.0.0/24, v6: fd44:0::/64, tenant: blue}", "v4: 10.45.0.0/24, tenant: red}", "has segment 'red-lan'"),
    ("arms: [", "attack: {foothold: {host: red-web, process: web}, goal: {role: db}}\narms: [", "goes by address"),
    ("version: 1\n", "version: 1\nbackend: docker\n", "networks of one engine cannot overlap"),
    ("    blue-web: {segment: blue-lan", "    blue-web: {segment: red-lan", "tenant 'blue' has one host at most"),
])
def test_what_cannot_be_is_refused_by_name(old: str, new: str, said: str) -> None:
    assert TEXT.count(old) == 1
    assert said in problems(TEXT.replace(old, new))


def test_no_router_reaches_into_a_tenant() -> None:
    lines = list(mininet_net.plan(TOPOLOGY, Path("/x")))
    assert not [line for line in lines if line.startswith(("default ", "link eth1 "))]
    assert sum(line.startswith("member ") for line in lines) == len(HOSTS)


def test_every_port_has_its_tenants_number_and_every_tenant_its_policy() -> None:
    rules = VirtualSwitch().compile(SCENARIO.policy, TOPOLOGY).rules
    told = {point.host: json.loads(text) for point, text in rules.items()}
    assert {name: one["port"]["tenant"] for name, one in told.items()} == {
        "red-web": 1, "red-db": 1, "blue-db": 2, "blue-web": 2}
    policies = {one["policy"]["tenant"]: one["policy"] for one in told.values() if "policy" in one}
    for number, tenant in ((1, "red"), (2, "blue")):
        alone = VirtualSwitch().compile(SCENARIO.policy, TOPOLOGY.of_tenant(tenant)).rules.values()
        policy = next(one["policy"] for one in map(json.loads, alone) if "policy" in one)
        assert policies[number] == {**policy, "tenant": number}
    assert {address for address, _ in policies[1]["addresses"]} == {address for address, _ in policies[2]["addresses"]}


def test_an_agents_rules_are_of_its_own_tenant() -> None:
    """The same address is a shop to the one and a store to the other."""
    rules = AgentNft().compile(SCENARIO.policy, TOPOLOGY).rules
    alone = {name: AgentNft().compile(SCENARIO.policy, TOPOLOGY.seen_by(name)).rules[Point("host", name)]
             for name in HOSTS}
    assert {point.host: text for point, text in rules.items()} == alone
    assert rules[Point("host", "red-db")] != rules[Point("host", "blue-db")]


def test_an_arm_that_goes_by_address_alone_is_unsupported_and_says_why() -> None:
    for name in ("hairpin", "unified-nft"):  # of the latter one half does not
        reason = testbeds.unsupported(SCENARIO, registry.load(name))
        assert reason and f"{name} goes by address alone" in reason
    for name in ("none", "agent-nft", "agent-nft-monitor", "agent-ebpf", "virtual-switch", "unified"):
        assert "address" not in (testbeds.unsupported(SCENARIO, registry.load(name)) or ""), name


def test_a_sighting_is_of_the_flow_at_its_own_point() -> None:
    red = Truth("probe", "red-web", "web", "/opt/shop/web", "svc", "red-db", "tcp", HOSTS["red-web"].v4, 40000,
                HOSTS["red-db"].v4, 5432, 1.0, 1.1, 64, "OPEN", True)
    blue = replace(red, source="blue-db", target="blue-web")
    seen = Sighting(point="blue-web", time=1.05, proto="tcp", source=red.source_address, sport=40000,
                    target=red.target_address, dport=5432)
    tenants = {name: TOPOLOGY.tenant(name) for name in HOSTS}
    found, unexplained = match([blue, red], [seen], tenants=tenants)
    assert [len(one.sightings) for one in found] == [1, 0] and unexplained == 0
    assert [len(one.sightings) for one in match([red, blue], [seen], tenants=tenants)[0]] == [0, 1]
    confused, _ = match([blue, red], [seen])
    assert [len(one.sightings) for one in confused] == [0, 1], "without them the other is taken to be seen"
