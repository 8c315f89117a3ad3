from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.model import (
    STRANGER,
    Flow,
    Host,
    Policy,
    Process,
    Rule,
    Scenario,
    Segment,
    Selector,
    Service,
    Topology,
    Verdict,
)  # fmt: skip
from lab.policy import WRONG_PORTS, decide, flows, matches, offered, selects_host, wrong_port, wrong_ports
from tests.unit.worlds import topologies, worlds

few = settings(max_examples=30, deadline=None)  # each with 50 flows
ANY, EVERYTHING = Selector(), Service("any")
HTTP = Service("tcp", 80, 80)
TOPOLOGY = Topology(
    {"s": Segment("s", "10.1.0.0/24", "fd10:1::/64", "10.1.0.1", "fd10:1::1")},
    {
        "web": Host("web", "s", "10.1.0.2", "fd10:1::2", "02:00:00:00:00:01", {"role": "web"}, ("front", "twin")),
        "db": Host("db", "s", "10.1.0.3", "fd10:1::3", "02:00:00:00:00:02", {"role": "db"}, ("store",)),
        "bare": Host("bare", "s", "10.1.0.4", "fd10:1::4", "02:00:00:00:00:03"),
    },
    {
        "front": Process("front", "/opt/front", "www", 20000, (HTTP,)),
        "twin": Process("twin", "/opt/front", "ops", 20001),
        "store": Process(
            "store", "/opt/store", "store", 20002, (Service("tcp", 5000, 5002), Service("udp", 5000, 5000))
        ),
    },
    {"www": 20000, "ops": 20001, "store": 20002, "nobody": 65534},
)
FLOW = Flow("web", "front", "www", "db", "store", "tcp", 5000, 4)
PING = Flow("web", "front", "www", "db", "", "icmp", 0, 4)


def policy(*rules: Rule, default: str = "deny") -> Policy:
    return Policy(default, rules)  # type: ignore[arg-type]


def rule(verdict: str, source: Selector = ANY, target: Selector = ANY, service: Service = EVERYTHING, name: str = "r"):
    return Rule(name, verdict, source, target, (service,))  # type: ignore[arg-type]


def sel(**keys: str) -> Selector:
    return Selector({key: (value,) for key, value in keys.items()})


def hits(
    flow: Flow, source: Selector = ANY, target: Selector = ANY, service: Service = EVERYTHING, of=TOPOLOGY
) -> bool:
    return matches(rule("allow", source, target, service), flow, of)


# --- what a rule matches, clause by clause ------------------------------------------------------


@pytest.mark.parametrize("default", ["allow", "deny"])
def test_without_a_rule_the_default_decides_and_is_named(default):
    assert decide(policy(default=default), FLOW, TOPOLOGY) == Verdict(default == "allow", "default")


def test_deny_overrides_allow_overrides_default_in_any_order():
    allow, deny = rule("allow", name="a"), rule("deny", name="d")
    for rules in ((allow, deny), (deny, allow)):
        assert decide(policy(*rules, default="allow"), FLOW, TOPOLOGY) == Verdict(False, "d")
    assert decide(policy(allow), FLOW, TOPOLOGY) == Verdict(True, "a")


def test_the_first_in_file_order_is_named_among_equals():
    rules = [rule("allow", name="a1"), rule("deny", name="d1"), rule("deny", name="d2"), rule("allow", name="a2")]
    assert decide(policy(*rules), FLOW, TOPOLOGY).rule == "d1"
    assert decide(policy(rules[0], rules[3]), FLOW, TOPOLOGY).rule == "a1"


def test_keys_are_anded_and_values_ored():
    assert hits(FLOW, Selector({"role": ("db", "web")}))
    assert not hits(FLOW, Selector({"role": ("db", "web"), "segment": ("other",)}))


def test_a_host_without_a_named_label_does_not_match():
    bare = replace(FLOW, source="bare")
    assert not hits(bare, sel(role="web")) and hits(bare)


def test_cidr_tests_the_address_that_the_flow_uses():
    six = replace(FLOW, family=6)
    assert hits(FLOW, sel(cidr="10.1.0.2/32")) and not hits(six, sel(cidr="10.1.0.2/32"))
    assert hits(six, target=sel(cidr="fd10:1::3/128")) and not hits(FLOW, target=sel(cidr="::/0"))
    assert selects_host(sel(cidr="fd10:1::2/128"), TOPOLOGY.hosts["web"]), "without a family either address counts"


def test_two_names_with_one_path_are_one_identity():
    assert hits(FLOW, sel(process="twin")) and hits(replace(FLOW, process="twin", user="ops"), sel(process="front"))


def test_a_hash_in_the_named_entry_asks_for_that_content():
    front = TOPOLOGY.processes["front"]
    processes = {**TOPOLOGY.processes, "signed": replace(front, name="signed", sha256="0" * 64)}
    topology = replace(TOPOLOGY, processes=processes)
    assert not hits(FLOW, sel(process="signed"), of=topology)
    signed = replace(FLOW, process="signed")
    assert hits(signed, sel(process="signed"), of=topology) and hits(signed, sel(process="front"), of=topology)


def test_an_undeclared_executable_matches_no_process_selector():
    stranger = replace(FLOW, process=STRANGER, user="nobody")
    assert not any(hits(stranger, sel(process=name)) for name in TOPOLOGY.processes)
    assert hits(stranger, sel(user="nobody")) and hits(stranger)
    assert not hits(replace(FLOW, target_process=STRANGER), target=sel(process="store"))


def test_user_is_the_initiators_on_the_source_and_the_receivers_on_the_target():
    assert hits(FLOW, sel(user="www")) and not hits(replace(FLOW, user="nobody"), sel(user="www"))
    assert hits(FLOW, target=sel(user="store")) and not hits(FLOW, target=sel(user="www"))
    assert hits(replace(FLOW, target_process=STRANGER), target=sel(user="nobody"))


def test_the_kernel_answers_an_echo_so_no_target_process_or_user_matches_icmp():
    assert not hits(PING, target=sel(process="store"))
    assert not hits(PING, target=sel(user="store")) and not hits(PING, target=sel(user="nobody"))
    assert hits(PING, sel(process="front"), sel(role="db"))


@pytest.mark.parametrize(
    ("service", "flow", "expected"),
    [
        (Service("tcp", 5000, 5000), FLOW, True),
        (Service("tcp", 4000, 5000), FLOW, True),
        (Service("tcp", 5001, 6000), FLOW, False),
        (Service("udp", 5000, 5000), FLOW, False),
        (Service("tcp", 5000, 5000, 6), FLOW, False),
        (Service("tcp", 5000, 5000, 4), FLOW, True),
        (Service("any"), FLOW, True),
        (Service("any"), PING, True),
        (Service("any", family=6), FLOW, False),
        (Service("icmp"), PING, True),
        (Service("icmp"), FLOW, False),
        (Service("tcp"), PING, False),
    ],
)
def test_services(service, flow, expected):
    assert hits(flow, service=service) is expected


def test_a_flow_of_a_host_to_its_own_address_is_in_scope():
    own = replace(FLOW, source="db", target="db")
    assert decide(policy(rule("allow", sel(role="db"), sel(role="db"))), own, TOPOLOGY).allow
    assert not decide(policy(), own, TOPOLOGY).allow


# --- what holds for every policy ----------------------------------------------------------------


@few
@given(worlds(), st.randoms())
def test_order_of_rules_never_matters_for_the_verdict(world, shuffler: random.Random):
    topology, given_policy, tried = world
    rules = list(given_policy.rules)
    shuffler.shuffle(rules)
    shuffled = replace(given_policy, rules=tuple(rules))
    for flow in tried:
        assert decide(shuffled, flow, topology).allow == decide(given_policy, flow, topology).allow


@few
@given(worlds(), st.integers(0, 7))
def test_adding_a_deny_never_opens_and_adding_an_allow_never_closes(world, index):
    topology, given_policy, tried = world
    rules = given_policy.rules
    for added in rules[index : index + 1]:
        without = replace(given_policy, rules=rules[:index] + rules[index + 1 :])
        for flow in tried:
            before, after = decide(without, flow, topology).allow, decide(given_policy, flow, topology).allow
            assert after <= before if added.verdict == "deny" else after >= before


@few
@given(worlds())
def test_the_named_rule_matches_and_has_the_verdict(world):
    topology, given_policy, tried = world
    for flow in tried:
        verdict = decide(given_policy, flow, topology)
        matching = {r.name: r.verdict for r in given_policy.rules if matches(r, flow, topology)}
        expected = given_policy.default if verdict.rule == "default" else matching[verdict.rule]
        assert verdict.allow == (expected == "allow")
        assert (verdict.rule == "default") == (not matching)


@few
@given(worlds())
def test_the_default_matters_only_where_no_rule_matches(world):
    topology, given_policy, tried = world
    other = replace(given_policy, default="deny" if given_policy.default == "allow" else "allow")
    for flow in tried:
        one, two = decide(given_policy, flow, topology), decide(other, flow, topology)
        assert (one.allow != two.allow) == (one.rule == "default")


# --- what could be tried ------------------------------------------------------------------------


def scenario(*rules: Rule) -> Scenario:
    return Scenario("x", "/x.yaml", TOPOLOGY, policy(*rules), None, None, ("none",), 1)


def test_every_host_offers_its_ports_its_wrong_ports_and_icmp():
    wrong = wrong_ports(TOPOLOGY)
    assert set(offered(TOPOLOGY)["db"]) == {
        ("store", "tcp", 5000), ("store", "tcp", 5001), ("store", "tcp", 5002), ("store", "udp", 5000),
        ("store", "tcp", wrong["store"]), ("store", "udp", wrong["store"]),
        (STRANGER, "tcp", wrong[STRANGER]), (STRANGER, "udp", wrong[STRANGER]), ("", "icmp", 0),
    }  # fmt: skip


def test_wrong_ports_are_distinct_and_above_the_ephemeral_range():
    wrong = wrong_ports(TOPOLOGY)
    assert len(set(wrong.values())) == len(TOPOLOGY.processes) + 1 and all(
        port in WRONG_PORTS for port in wrong.values()
    )
    assert all(wrong_port(TOPOLOGY, name) == port for name, port in wrong.items())


def test_flows_are_every_pair_source_and_offer_in_both_families():
    tried = flows(scenario())
    sources = {"web": 3, "db": 2, "bare": 1}
    offers = {host: len(found) for host, found in offered(TOPOLOGY).items()}
    assert len(tried) == len(set(tried)) == 2 * sum(sources.values()) * sum(offers.values())
    assert {(f.source, f.target) for f in tried} == {(a, b) for a in TOPOLOGY.hosts for b in TOPOLOGY.hosts}
    assert {f.user for f in tried if f.process == "front"} == {"www"}


def test_a_wrong_user_is_tried_only_where_a_rule_names_one():
    tried = flows(scenario(rule("allow", sel(user="www"))))
    assert {f.user for f in tried if f.process == "front"} == {"www", "nobody"}


@few
@given(topologies())
def test_every_flow_has_ends_that_exist(topology):
    for flow in flows(Scenario("x", "/x", topology, policy(), None, None, (), 1)):
        assert flow.process == STRANGER or flow.process in topology.hosts[flow.source].runs
        assert (flow.target_process, flow.proto, flow.port) in offered(topology)[flow.target]
