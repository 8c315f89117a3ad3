"""What an address-based arm makes of a policy, and that its rule sets do exactly what it says: walked, not trusted."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcers.agent.agent_nft import AgentNft
from enforcers.agentless.chokepoint import Chokepoint
from enforcers.base import PORT_MAX, Ports, Resolver, Services, effective, resolve
from enforcers.nft import Mode
from enforcers.none import NoEnforcer
from lab.model import Approximation, Flow, Host, Native, Point, Policy, Rule, Selector, Service, Topology
from lab.policy import decide, names_owner
from lab.scenario import load
from tests.unit.nft_model import Packet, Ruleset
from tests.unit.worlds import a_flow, policies, topologies, worlds

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
EVERYONE = Selector()


def rule(name: str, verdict: str, *services: Service, source: Selector = EVERYONE,
         target: Selector = EVERYONE) -> Rule:
    return Rule(name, verdict, source, target, services)  # type: ignore[arg-type]


# --- effective --------------------------------------------------------------------------------


def test_allow_rules_that_name_an_owner_are_widened_in_words() -> None:
    written = rule("r", "allow", Service("tcp", 80, 80), source=Selector({"role": ("web",), "process": ("p",)}))
    policy, said = effective(Policy("deny", (written,)))
    assert policy.rules == (replace(written, source=Selector({"role": ("web",)})),)
    assert [(a.rule, a.kind, a.reason) for a in said] == [
        ("r", "widened", "process: an address-based rule cannot name one")]


def test_deny_rules_that_name_an_owner_are_omitted_and_say_why() -> None:
    written = rule("r", "deny", Service("any"), source=Selector({"user": ("u",)}), target=Selector({"process": ("p",)}))
    policy, said = effective(Policy("allow", (written,), loopback=True))
    assert policy == Policy("allow", (), loopback=True)
    assert said[0].kind == "omitted"
    assert said[0].reason.startswith("process and user: an address-based rule cannot name one; ")


def test_a_target_that_names_a_process_never_meant_icmp() -> None:
    written = rule("r", "allow", Service("any"), Service("icmp"), target=Selector({"process": ("p",)}))
    policy, _ = effective(Policy("deny", (written,)))
    assert policy.rules[0].services == (Service("tcp"), Service("udp"))


def test_rules_without_owners_stay_as_they_are() -> None:
    policy = Policy("deny", (rule("r", "allow", Service("icmp")), rule("s", "deny", Service("tcp", 1, 2))))
    assert effective(policy) == (policy, ())


@given(worlds(flow_count=20))
def test_effective_allows_whatever_the_policy_allows_but_for_what_only_a_deny_with_owner_forbids(
        world: tuple[Topology, Policy, list[Flow]]) -> None:
    """Widening and omission only ever open: an approximation breaks no intended flow."""
    topology, policy, some = world
    reduced, said = effective(policy)
    assert not any(names_owner(end) for r in reduced.rules for end in (r.source, r.target))
    assert {a.rule for a in said} == {
        r.name for r in policy.rules if names_owner(r.source) or names_owner(r.target)}
    for flow in some:
        assert decide(reduced, flow, topology).allow >= decide(policy, flow, topology).allow


def test_resolver_refuses_rules_with_owners() -> None:
    owned = Policy("deny", (rule("r", "allow", Service("any"), source=Selector({"process": ("p",)})),))
    with pytest.raises(ValueError, match="rule 'r' names a process"):
        Resolver(owned, Topology({}, {}, {}, {}))


# --- resolve ----------------------------------------------------------------------------------


def test_port_ranges_are_split_where_a_deny_cuts_them() -> None:
    rules = [rule("a", "allow", Service("tcp", 8000, 8100)), rule("d", "deny", Service("tcp", 8050, 8060, family=4))]
    assert resolve(rules, 4, default=False) == Services(
        (Ports("tcp", 8000, 8049, True), Ports("tcp", 8061, 8100, True)), (), False)
    assert resolve(rules, 6, default=False) == Services((Ports("tcp", 8000, 8100, True),), (), False)


def test_wider_verdicts_are_said_once() -> None:
    rules = [rule("a", "allow", Service("any")), rule("d", "deny", Service("udp", 0, PORT_MAX), Service("tcp", 22, 22))]
    assert resolve(rules, 4, default=False) == Services((Ports("tcp", 22, 22, False),), (("udp", False),), True)
    assert resolve([], 4, default=True) == Services((), (), True)


def test_neighbouring_ranges_of_one_verdict_become_one() -> None:
    rules = [rule("a", "allow", Service("tcp", 80, 80)), rule("b", "allow", Service("tcp", 81, 90))]
    assert resolve(rules, 4, default=False).ports == (Ports("tcp", 80, 90, True),)


# --- the rule sets do what effective says -------------------------------------------------------

ARMS: list[tuple[type[AgentNft | Chokepoint], Mode]] = [
    (AgentNft, "enforce"), (AgentNft, "monitor"), (Chokepoint, "enforce"), (Chokepoint, "monitor")]
arms = pytest.mark.parametrize(("arm", "mode"), ARMS, ids=[f"{arm.name}-{mode}" for arm, mode in ARMS])


@st.composite
def managed_worlds(draw: st.DrawFn) -> tuple[Topology, Policy, list[Flow]]:
    """Worlds where some hosts take no agent, some are external, some share an address range."""
    topology = draw(topologies())
    hosts = {
        name: replace(host, agent=draw(st.sampled_from(("possible", "possible", "impossible"))),
                      external=draw(st.sampled_from((False, False, True))))
        for name, host in topology.hosts.items()
    }  # fmt: skip
    topology = replace(topology, hosts=hosts)
    policy = replace(draw(policies(topology)), loopback=draw(st.booleans()))
    rng = random.Random(draw(st.integers(0, 2**32)))
    return topology, policy, [a_flow(rng, topology) for _ in range(24)]


@arms
@given(world=managed_worlds())
@settings(max_examples=60, deadline=None)
def test_expected_is_what_the_rule_sets_do(
        arm: type[AgentNft | Chokepoint], mode: Mode, world: tuple[Topology, Policy, list[Flow]]) -> None:
    """`decide(effective, flow)` where the arm covers the flow, every packet passes where it does not."""
    topology, policy, some = world
    enforcer = arm(mode)
    native = enforcer.compile(policy, topology)
    rulesets = {point: Ruleset(text) for point, text in native.rules.items()}
    for flow in some:
        expected = not enforcer.covers(flow, topology) or decide(native.effective, flow, topology).allow
        crossings = path(enforcer, flow, topology)
        outcomes = [rulesets[point].judge(hook, packet_of(flow, topology)) for point, hook in crossings]
        passes = all(verdict == "accept" for verdict, _ in outcomes)
        prefixes = {prefix for _, prefix in outcomes if prefix}
        if mode == "enforce":
            assert passes == expected, flow
            assert bool(prefixes) == (not expected)
        else:
            assert passes
            assert all(prefix.startswith("would-deny ") for prefix in prefixes)
            assert bool(prefixes) == (not expected), flow


@arms
@given(world=managed_worlds())
@settings(max_examples=40, deadline=None)
def test_replies_are_judged_by_the_flow_they_answer(
        arm: type[AgentNft | Chokepoint], mode: Mode, world: tuple[Topology, Policy, list[Flow]]) -> None:
    """After an update a reply may be the first packet seen: same verdict as for the flow itself; marked ones pass."""
    topology, policy, some = world
    enforcer = arm(mode)
    native = enforcer.compile(policy, topology)
    rulesets = {point: Ruleset(text) for point, text in native.rules.items()}
    for flow in some:
        forward = packet_of(flow, topology)
        back = replace(forward, source=forward.target, target=forward.source, sport=forward.dport,
                       dport=forward.sport, reply=True)
        for point, hook in path(enforcer, flow, topology):
            other = {"input": "output", "output": "input", "forward": "forward"}[hook]
            assert rulesets[point].judge(other, back)[0] == rulesets[point].judge(hook, forward)[0], (flow, hook)
            assert rulesets[point].judge(other, replace(back, marked=True)) == ("accept", "")
            assert rulesets[point].judge(hook, replace(forward, state="related")) == ("accept", "")


def path(enforcer: AgentNft | Chokepoint, flow: Flow, topology: Topology) -> list[tuple[Point, str]]:
    """The base chains that the first packet of a flow crosses, in order."""
    source, target = topology.hosts[flow.source], topology.hosts[flow.target]
    if isinstance(enforcer, Chokepoint):
        return [(Point("router", topology.router), "forward")] if source.segment != target.segment else []
    ends = [(source, "output"), (target, "input")]
    return [(Point("host", host.name), hook) for host, hook in ends if host.takes_agent]


def packet_of(flow: Flow, topology: Topology) -> Packet:
    source, target = (topology.hosts[name].address(flow.family) for name in (flow.source, flow.target))
    return Packet(source, target, flow.proto, 40000, flow.port, loopback=flow.source == flow.target)


@given(topology=topologies(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_other_protocols_follow_the_any_rules(topology: Topology, data: st.DataObject) -> None:
    policy, _ = effective(data.draw(policies(topology)))
    native = AgentNft().compile(policy, topology)
    source, target = (data.draw(st.sampled_from(list(topology.hosts.values()))) for _ in range(2))
    packet = Packet(source.v4, target.v4, "sctp", 1, 2)
    only_any = tuple(replace(r, services=tuple(s for s in r.services if s.proto == "any")) for r in policy.rules)
    flow = Flow(source.name, "(stranger)", "nobody", target.name, "(stranger)", "tcp", 2, 4)
    wanted = decide(replace(policy, rules=only_any), flow, topology).allow
    verdict, _ = Ruleset(native.rules[Point("host", source.name)]).judge("output", packet)
    assert (verdict == "accept") == wanted


@pytest.mark.parametrize("loopback", [False, True])
def test_loopback_addresses_are_judged_only_where_the_policy_says_so(loopback: bool) -> None:
    topology = three_tier()[0]
    native = AgentNft().compile(Policy("deny", (rule("r", "allow", Service("tcp", 80, 80)),), loopback), topology)
    for host in (h for h in topology.hosts.values() if h.takes_agent):
        ruleset = Ruleset(native.rules[Point("host", host.name)])
        for address in ("127.0.0.1", "127.9.9.9", "::1"):
            for port, wanted in ((80, True), (81, not loopback)):
                packet = Packet(address, address, "tcp", 40000, port, loopback=True)
                for hook in ("output", "input"):
                    assert (ruleset.judge(hook, packet)[0] == "accept") == wanted
        outside = Packet("127.0.0.1", host.v4, "tcp", 1, 81, loopback=False)
        assert ruleset.judge("input", outside)[0] == "drop", "a forged loopback source from the wire is no loopback"


def test_maps_are_hashes_unless_a_range_needs_an_interval() -> None:
    topology = three_tier()[0]
    singles = Policy("deny", (rule("r", "allow", Service("tcp", 80, 80), Service("icmp")),))
    ranges = Policy("deny", (rule("r", "allow", Service("tcp", 80, 90), Service("icmp")),))
    for arm in (AgentNft(), Chokepoint()):
        for policy, wanted in ((singles, False), (ranges, True)):
            for text in arm.compile(policy, topology).rules.values():
                kinds = Ruleset(text).interval
                assert {kind for name, kind in kinds.items() if "_port" in name} == {wanted}
                assert not any(kind for name, kind in kinds.items() if "_proto" in name)


# --- numbers, coverage, deployment --------------------------------------------------------------


def three_tier() -> tuple[Topology, Policy]:
    scenario = load(ROOT / "scenarios" / "three-tier.yaml")
    return scenario.topology, scenario.policy


def test_coverage_is_what_each_arm_claims() -> None:
    topology, _ = three_tier()

    def claims(arm: AgentNft | Chokepoint | NoEnforcer, source: str, target: str) -> bool:
        return arm.covers(Flow(source, "x", "x", target, "x", "tcp", 1, 4), topology)

    pairs = [("cam", "cam"), ("cam", "web-1"), ("web-1", "cam"), ("web-1", "web-1"), ("web-1", "web-2"),
             ("api-1", "cam")]
    assert [claims(AgentNft(), *pair) for pair in pairs] == [False, True, True, True, True, True]
    assert [claims(Chokepoint(), *pair) for pair in pairs] == [False, True, True, False, False, False]
    assert not any(claims(NoEnforcer(), *pair) for pair in pairs)


def test_count_is_the_number_of_elements() -> None:
    topology, policy = three_tier()
    for arm in (AgentNft(), Chokepoint()):
        native = arm.compile(policy, topology)
        elements = sum(len(entries) for text in native.rules.values() for entries in Ruleset(text).maps.values())
        assert native.count == elements > 0


def test_none_enforces_nothing_and_says_so_once() -> None:
    topology, policy = three_tier()
    arm = NoEnforcer()
    native = arm.compile(policy, topology)
    assert native == Native({}, Policy("allow", ()), native.approximations, 0)
    assert native.approximations == (Approximation("(all)", "omitted", "nothing is enforced"),)
    assert arm.render(native, topology) == {}
    assert arm.needs() == ()
    assert list(arm.sightings(Point("host", "x"), [])) == []


def test_the_mark_is_that_of_the_rules_and_never_zero() -> None:
    topology, policy = three_tier()
    arms_ = (AgentNft("enforce"), AgentNft("monitor"))
    texts = [text for arm in arms_ for text in arm.compile(policy, topology).rules.values()]
    marks = [set(re.findall(r"0x([0-9a-f]{5})[0-9a-f]{3}\b", text)) - {"fffff"} for text in texts]
    assert all(len(found) == 1 and found != {"00000"} for found in marks)
    assert len({found.pop() for found in marks}) == len(set(texts))
    again = AgentNft().compile(policy, topology)
    assert list(again.rules.values()) == texts[: len(again.rules)]


def test_deployment_runs_only_the_placed_agent() -> None:
    topology, policy = three_tier()
    for arm in (AgentNft(), Chokepoint()):
        deployment = arm.render(arm.compile(policy, topology), topology)
        assert deployment
        for plan in deployment.values():
            assert set(plan.files) == {f"/run/host/agent/{name}" for name in ("agent.pyz", "policy.json", "rules.nft")}
            for argv in (*plan.up, plan.ready, *plan.update, plan.collect, *plan.down):
                assert argv[:4] == ("/usr/bin/python3", "-I", "-S", "/run/host/agent/agent.pyz")


def external(host: Host) -> bool:
    return host.external or host.agent == "impossible"


def test_agents_go_where_they_can() -> None:
    topology, policy = three_tier()
    native = AgentNft().compile(policy, topology)
    assert {point.host for point in native.rules} == {h.name for h in topology.hosts.values() if not external(h)}
    assert Point("host", "cam") not in native.rules


# --- golden: whole rule sets, without root --------------------------------------------------------


def golden_cases() -> list[tuple[str, AgentNft | Chokepoint]]:
    return [("agent-nft", AgentNft()), ("agent-nft/monitor", AgentNft("monitor")), ("chokepoint", Chokepoint()),
            ("chokepoint/monitor", Chokepoint("monitor"))]


@pytest.mark.parametrize(("folder", "arm"), golden_cases(), ids=[folder for folder, _ in golden_cases()])
def test_golden(folder: str, arm: AgentNft | Chokepoint, request: pytest.FixtureRequest) -> None:
    """Compare with tests/golden; to accept a change, delete the folder's files and run this test once."""
    topology, policy = three_tier()
    native = arm.compile(policy, topology)
    deployment = arm.render(native, topology)
    produced = {f"{point.host}.nft": text.encode() for point, text in native.rules.items()}
    produced |= {f"{point.host}.policy.json": plan.files["/run/host/agent/policy.json"]
                 for point, plan in deployment.items()}
    said = [f"{a.rule}: {a.kind}: {a.reason}" for a in native.approximations]
    produced["approximations.txt"] = "\n".join([*said, f"{native.count} elements", ""]).encode()
    where = GOLDEN / folder
    if not any(where.glob("*.nft")):
        where.mkdir(parents=True, exist_ok=True)
        for name, content in produced.items():
            (where / name).write_bytes(content)
        pytest.fail(f"{where} was empty and has been written; read it and run again")
    assert {path.name for path in where.iterdir() if path.is_file()} == set(produced)
    for name, content in produced.items():
        assert (where / name).read_bytes() == content, name


@given(worlds(flow_count=1))
@settings(max_examples=20, deadline=None)
def test_compile_is_deterministic(world: tuple[Topology, Policy, list[Flow]]) -> None:
    topology, policy, _ = world
    for arm in (AgentNft(), Chokepoint()):
        assert arm.compile(policy, topology) == arm.compile(policy, topology)
