"""How fast the oracle decides: 1,000,000 flows among 1,000 hosts under 1,000 rules. Run: pytest bench/regression."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lab.model import Host, Policy, Process, Rule, Segment, Selector, Service, Topology
from lab.policy import decide
from lab.policy_sets import FlowArrays, Oracle

HOSTS, RULES, FLOWS = 1000, 1000, 1_000_000


def _topology(rng: random.Random) -> Topology:
    processes = {
        f"p{i}": Process(f"p{i}", f"/opt/p{i}", f"u{i}", 20000 + i, (Service("tcp", 1000 + i, 1000 + i),))
        for i in range(200)
    }
    hosts = {}
    for i in range(HOSTS):
        labels = {"role": f"r{i % 50}", "env": rng.choice(("prod", "test")), "app": f"a{rng.randrange(40)}"}
        runs = tuple(rng.sample(sorted(processes), 3))
        v4, v6 = f"10.{i % 10}.{i // 200}.{i % 200 + 2}", f"fd10:{i % 10}::{i:x}"
        hosts[f"h{i}"] = Host(f"h{i}", f"s{i % 10}", v4, v6, f"02:00:00:00:{i >> 8:02x}:{i & 255:02x}", labels, runs)
    segments = {
        f"s{i}": Segment(f"s{i}", f"10.{i}.0.0/16", f"fd10:{i}::/64", f"10.{i}.0.1", f"fd10:{i}::1") for i in range(10)
    }
    return Topology(segments, hosts, processes, {p.user: p.uid for p in processes.values()})


def _selector(rng: random.Random) -> Selector:
    keys: dict[str, tuple[str, ...]] = {"role": tuple(f"r{rng.randrange(50)}" for _ in range(rng.randint(1, 3)))}
    if rng.random() < 0.5:
        keys["env"] = ("prod",)
    if rng.random() < 0.3:
        keys["process"] = tuple(f"p{rng.randrange(200)}" for _ in range(20))
    if rng.random() < 0.1:
        keys["cidr"] = (f"10.{rng.randrange(10)}.0.0/16",)
    return Selector(keys)


def _policy(rng: random.Random) -> Policy:
    rules = []
    for i in range(RULES):
        low = 1000 + rng.randrange(200)
        service = Service(rng.choice(("tcp", "udp", "any")), low, low + rng.choice((0, 0, 100)))
        verdict = "deny" if rng.random() < 0.1 else "allow"
        rules.append(Rule(f"rule-{i}", verdict, _selector(rng), _selector(rng), (service,)))
    return Policy("deny", tuple(rules))


def _flows(topology: Topology) -> FlowArrays:
    rng = np.random.default_rng(1)

    def below(high: int) -> np.ndarray:
        return rng.integers(0, high, FLOWS).astype(np.int32)

    process = below(len(topology.processes))  # the user of p7 is u7: the same number
    family = (4 + 2 * below(2)).astype(np.int32)
    return FlowArrays(
        below(HOSTS),
        process,
        process,
        below(HOSTS),
        below(len(topology.processes)),
        below(2),
        1000 + below(300),
        family,
    )


@pytest.fixture(scope="module")
def world() -> tuple[Topology, Policy]:
    rng = random.Random(1)
    return _topology(rng), _policy(rng)


def test_a_million_verdicts_with_rule_a_second(benchmark, world):
    topology, policy = world
    oracle, flows = Oracle(policy, topology), _flows(topology)
    allow, rules = benchmark.pedantic(oracle.decide_many, (flows,), rounds=5, warmup_rounds=1)
    assert 0 < allow.sum() < FLOWS and len(set(rules.tolist())) > RULES / 2
    assert FLOWS / benchmark.stats["median"] >= 1_000_000, "the oracle must decide a million flows a second"
    sample = np.arange(0, FLOWS, FLOWS // 300)
    for flow, allowed, rule in zip(oracle.decode(flows.take(sample)), allow[sample], rules[sample], strict=True):
        verdict = decide(policy, flow, topology)
        assert (allowed, policy.rules[rule].name if rule >= 0 else "default") == (verdict.allow, verdict.rule)


def test_compile(benchmark, world):
    topology, policy = world
    benchmark.pedantic(Oracle, (policy, topology), rounds=3)


def test_verdicts_from_flow_values(benchmark, world):
    topology, policy = world
    oracle = Oracle(policy, topology)
    flows = oracle.decode(_flows(topology).take(slice(0, 100_000)))
    benchmark.pedantic(oracle.verdicts, (flows,), rounds=3)


def test_scalar_decide(benchmark, world):
    topology, policy = world
    flows = Oracle(policy, topology).decode(_flows(topology).take(slice(0, 50)))
    benchmark.pedantic(lambda: [decide(policy, flow, topology) for flow in flows], rounds=3)
