"""What hairpin, virtual-switch-nft and unified make of a policy: walked, compared with the oracle, and kept whole."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from bench import catalogue
from bench.installed import Installed
from enforcers.agent.agent_ebpf import AgentEbpf
from enforcers.agent.agent_nft import AgentNft
from enforcers.agentless.hairpin import Hairpin
from enforcers.agentless.switch import bundle as switch_bundle
from enforcers.agentless.virtual_switch import VirtualSwitch
from enforcers.agentless.virtual_switch_nft import VirtualSwitchNft, link_local
from enforcers.unified import Unified, UnifiedNft
from lab import features
from lab.backends import neighbours
from lab.bpf import build
from lab.model import Enforcer, Flow, Native, Point, Policy, Rule, Selector, Service, Topology
from lab.policy import decide
from lab.scenario import load
from tests.unit.nft_model import Ruleset
from tests.unit.test_enforcers import managed_worlds, packet_of

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
OF_HALVES: list[tuple[type[Unified], Enforcer, Enforcer]] = [
    (Unified, AgentEbpf(), VirtualSwitch()), (UnifiedNft, AgentNft(), VirtualSwitchNft())]


def three_tier() -> tuple[Topology, Policy]:
    scenario = load(ROOT / "scenarios" / "three-tier.yaml")
    return scenario.topology, scenario.policy


def whole(native: Native) -> Ruleset:
    return Ruleset(next(text for text in native.rules.values() if "table inet" in text))


# --- the rules do what effective says -----------------------------------------------------------


@pytest.mark.parametrize("arm", [Hairpin(), VirtualSwitchNft()], ids=lambda arm: arm.name)
@given(world=managed_worlds())
@settings(max_examples=60, deadline=None)
def test_expected_is_what_the_rules_do(arm: Enforcer, world: tuple[Topology, Policy, list[Flow]]) -> None:
    """Between hosts, that is: what a host says to itself never comes by. Outsiders among themselves are let alone."""
    topology, policy, some = world
    native = arm.compile(policy, topology)
    if not native.rules:
        return
    rules = whole(native)
    for flow in (one for one in some if one.source != one.target):
        expected = not arm.covers(flow, topology) or decide(native.effective, flow, topology).allow
        forward = packet_of(flow, topology)
        assert (rules.judge("forward", forward)[0] == "accept") == expected, flow
        back = replace(forward, source=forward.target, target=forward.source, sport=forward.dport,
                       dport=forward.sport, reply=True)
        assert (rules.judge("forward", back)[0] == "accept") == expected, flow


@pytest.mark.parametrize(("arm", "agent", "switch"), OF_HALVES, ids=lambda one: getattr(one, "name", ""))
@given(world=managed_worlds())
@settings(max_examples=80, deadline=None)
def test_together_they_pass_what_both_pass(arm: type[Unified], agent: Enforcer, switch: Enforcer,
                                           world: tuple[Topology, Policy, list[Flow]]) -> None:
    """A flow has to pass each half that claims it; the arm says so of itself, flow by flow."""
    topology, policy, some = world
    native = arm().compile(policy, topology)
    halves = [(half, half.compile(policy, topology)) for half in (agent, switch)]
    for flow in some:
        claimed = [decide(one.effective, flow, topology).allow for half, one in halves if half.covers(flow, topology)]
        assert arm().covers(flow, topology) == bool(claimed)
        if claimed:
            assert decide(native.effective, flow, topology).allow == all(claimed), flow
    assert native.rules == {**halves[0][1].rules, **halves[1][1].rules}


def test_between_devices_without_agents_the_switch_alone_judges() -> None:
    topology, _ = three_tier()
    hosts = {name: replace(host, agent="impossible") if name in ("cam", "db") else host
             for name, host in topology.hosts.items()}
    named = Rule("r", "allow", Selector({"process": ("stream",)}), Selector({"process": ("store",)}),
                 (Service("tcp", 6379, 6379),))
    world = replace(topology, hosts=hosts)
    native = Unified().compile(Policy("deny", (named,)), world)
    flow = Flow("cam", "(stranger)", "nobody", "db", "store", "tcp", 6379, 4)
    assert decide(native.effective, flow, world).allow
    assert any("a switch knows no owner" in a.reason for a in native.approximations)


# --- who is guarded, and what is placed where -----------------------------------------------------


@pytest.mark.parametrize(("arm", "claimed"), [
    (Hairpin(), [False, True, True, False, True]), (VirtualSwitchNft(), [False, True, True, False, True]),
    (Unified(), [False, True, True, True, True]), (UnifiedNft(), [False, True, True, True, True])],
    ids=lambda one: getattr(one, "name", ""))
def test_coverage_is_what_each_arm_claims(arm: Enforcer, claimed: list[bool]) -> None:
    topology, _ = three_tier()
    pairs = [("cam", "cam"), ("cam", "web-1"), ("web-1", "cam"), ("web-1", "web-1"), ("api-1", "cam")]
    assert [arm.covers(Flow(*pair[:1], "x", "x", pair[1], "x", "tcp", 1, 4), topology) for pair in pairs] == claimed


def test_hosts_outside_of_the_site_are_at_no_port() -> None:
    topology, policy = three_tier()
    hosts = {name: replace(host, external=name.startswith("user")) for name, host in topology.hosts.items()}
    world, arm = replace(topology, hosts=hosts), VirtualSwitchNft()
    native = arm.compile(policy, world)
    assert {point.host for point in native.rules} == set(hosts) - {"user-1", "user-2"}
    flow = Flow("user-1", "x", "x", "user-2", "x", "tcp", 1, 4)
    assert not arm.covers(flow, world)
    assert whole(native).judge("forward", packet_of(flow, world))[0] == "accept"


@pytest.mark.parametrize("arm", [Hairpin(), VirtualSwitchNft(), VirtualSwitch()], ids=lambda arm: arm.name)
def test_nothing_is_placed_on_a_host(arm: Enforcer) -> None:
    topology, policy = three_tier()
    deployment = arm.render(arm.compile(policy, topology), topology)
    assert {point.kind for point in deployment} <= {"port", "router"}
    assert {point.host for point in deployment if point.kind == "port"} == set(topology.hosts)


def test_hosts_ask_for_each_other_under_hairpin_alone() -> None:
    topology, policy = three_tier()
    assert Hairpin().compile(policy, topology).neighbours == "asked"
    assert VirtualSwitchNft().compile(policy, topology).neighbours == "permanent"
    cam = topology.hosts["cam"]
    forget, know = list(neighbours.forgotten(cam, topology)), list(neighbours.known(cam, topology))
    assert len(forget) == len(know) == 4, "two others in its segment, two families"
    assert f"neigh del {topology.hosts['api-1'].v6} dev eth0" in forget
    assert not any(topology.segments["app"].gateway4 in line for line in forget), "the router stays known"
    assert [line.split()[2] for line in forget] == [line.split()[2] for line in know]


def test_a_link_local_address_is_made_of_the_mac() -> None:
    assert link_local("02:00:5e:10:00:01") == "fe80::5eff:fe10:1"


def test_unified_without_bpf_needs_none() -> None:
    assert not {"clang", "bpf", "tc-bpf", "cgroup-bpf"} & {feature.name for feature in UnifiedNft().needs()}
    assert {"clang", "tc-bpf", "cgroup-bpf"} <= {feature.name for feature in Unified().needs()}


# --- where something is missing -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["virtual-switch", "agent-ebpf", "unified"])
def test_without_clang_an_arm_is_unsupported_and_not_broken(name: str, monkeypatch: pytest.MonkeyPatch,
                                                            tmp_path: Path) -> None:
    """Nothing is compiled yet and nothing can be: `labctl arms` says what is missing, and what mends it."""
    switch_bundle.program.cache_clear()
    monkeypatch.setattr(build, "_place", lambda beside: tmp_path)
    monkeypatch.setattr(build.shutil, "which", lambda *args, **more: None)
    (installed,) = (one for one in catalogue.registry.installed() if one.name == name)
    assert isinstance(installed, Installed)
    try:
        entry = catalogue._entry(installed)
        assert entry.broken is None
        assert "clang" in {need.name for need in entry.needs}
        lack = features.CHECKS["clang"].probe()
        assert lack is not None and "clang is not installed" in lack.problem and "apt" in lack.remedy
        assert entry.coverage is not None and entry.coverage["same segment"] == "yes"
    finally:
        switch_bundle.program.cache_clear()


# --- golden: without root -------------------------------------------------------------------------


@pytest.mark.parametrize("arm", [Hairpin(), VirtualSwitchNft()], ids=lambda arm: arm.name)
def test_golden(arm: Enforcer) -> None:
    """Compare with tests/golden; to accept a change, delete the folder and run this test once."""
    topology, policy = three_tier()
    native = arm.compile(policy, topology)
    said = [f"{a.rule}: {a.kind}: {a.reason}" for a in native.approximations]
    produced = {"approximations.txt": "\n".join([*said, f"{native.count} elements", ""])}
    for point, plan in arm.render(native, topology).items():
        if point.kind == "port" and point.host not in ("user-1", "cam"):  # the others' are like the camera's
            continue
        for path, content in plan.files.items():
            if not path.endswith(".pyz"):
                produced[f"{point.kind}.{point.host}.{path.rpartition('/')[2]}"] = content.decode()
        orders = {what: getattr(plan, what) for what in ("up", "ready", "update", "collect", "down")}
        produced[f"{point.kind}.{point.host}.json"] = json.dumps(orders, indent=1) + "\n"
    where = GOLDEN / arm.name
    if not where.exists():
        where.mkdir()
        for name, text in produced.items():
            (where / name).write_text(text)
        pytest.fail(f"{where} was empty and has been written; read it and run again")
    assert {path.name for path in where.iterdir()} == set(produced)
    for name, text in produced.items():
        assert (where / name).read_text() == text, name


def test_every_port_is_named_by_the_lab() -> None:
    """No rule holds the name of an interface of the switch: the lab says which one a port is."""
    topology, policy = three_tier()
    native = VirtualSwitchNft().compile(policy, topology)
    assert not [name for text in native.rules.values() for name in re.findall(r'"[a-z]+\d+"', text)]
    assert all("device $port" in text for text in native.rules.values())
    assert Point("port", "cam") in native.rules


def test_unified_fails_as_its_agents_are_set_to() -> None:
    world = load(ROOT / "scenarios" / "three-tier.yaml")
    for way, word in (("open", "opens"), ("closed", "closes")):
        made = Unified().failing(way)
        assert made is not None and made.name == "unified" and made.stops_spoofing
        native = made.compile(world.policy, world.topology)
        agents = [text for point, text in native.rules.items() if point.kind == "host"]
        assert agents and all(f'"on_silence": "{word}"' in text for text in agents)
        assert {point.kind for point in native.rules} == {"host", "port"}
    assert UnifiedNft().failing("open") is None, "agent-nft's rules hold whatever becomes of it"
