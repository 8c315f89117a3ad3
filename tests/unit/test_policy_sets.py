from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from lab.model import Flow, Policy, Rule, Scenario, Selector, Service
from lab.policy import decide, iter_flows
from lab.policy_sets import Oracle
from tests.unit.test_policy import FLOW, TOPOLOGY
from tests.unit.worlds import worlds


@settings(deadline=None)
@given(worlds(flow_count=100))
def test_agrees_with_the_scalar_oracle_including_the_deciding_rule(world):
    topology, policy, flows = world
    assert Oracle(policy, topology).verdicts(flows) == [decide(policy, flow, topology) for flow in flows]


@given(worlds())
@settings(max_examples=30, deadline=None)
def test_encode_all_is_iter_flows_and_decides_alike(world):
    topology, policy, _ = world
    scenario = Scenario("x", "/x", topology, policy, None, None, (), 1)
    oracle, flows = Oracle(policy, topology), list(iter_flows(scenario))
    arrays = oracle.encode_all(scenario)
    assert oracle.decode(arrays) == tuple(flows)
    assert all((a == b).all() for a, b in zip(arrays.columns(), oracle.encode(flows).columns(), strict=True))
    allow, _rules = oracle.decide_many(arrays)
    assert allow.tolist() == [decide(policy, flow, topology).allow for flow in flows]


def test_rule_indices_are_those_of_the_file_even_beyond_a_word_of_64_and_a_chunk():
    never = [Rule(f"n{i}", "allow", Selector({"host": ("bare",)}), Selector(), (Service("any"),)) for i in range(130)]
    decider = Rule("last", "deny", Selector(), Selector({"role": ("db",)}), (Service("tcp", 5000, 5000),))
    policy = Policy("allow", (*never, decider))
    oracle = Oracle(policy, TOPOLOGY)
    flows = [FLOW, Flow("web", "front", "www", "db", "store", "tcp", 5001, 6)] * 40_000
    allow, rules = oracle.decide_many(oracle.encode(flows))
    assert np.array_equal(rules, np.tile([130, -1], 40_000)) and np.array_equal(allow, np.tile([False, True], 40_000))


def test_exactly_64_rules_and_none_at_all():
    rules = tuple(Rule(f"r{i}", "allow", Selector(), Selector(), (Service("udp", i + 1, i + 1),)) for i in range(64))
    flow = Flow("web", "front", "www", "db", "store", "udp", 64, 4)
    assert [v.rule for v in Oracle(Policy("deny", rules), TOPOLOGY).verdicts([flow, FLOW])] == ["r63", "default"]
    assert [v.rule for v in Oracle(Policy("deny", ()), TOPOLOGY).verdicts([flow])] == ["default"]


def test_no_flows():
    assert Oracle(Policy("deny", ()), TOPOLOGY).verdicts([]) == []
