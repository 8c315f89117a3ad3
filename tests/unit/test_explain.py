"""What the policy means, what each arm will do and why; and which kernel rules decided."""

from __future__ import annotations

import pytest

from bench import registry
from bench.explain import Explained, Seen, explain
from bench.instruments.nft_trace import decided, points, table
from lab.flow_text import parse
from lab.model import Flow, Observation, Outcome
from lab.scenario import load
from tests.e2e.isolated import ROOT

SCENARIO = load(ROOT / "scenarios/three-tier.yaml", arms=("none", "agent-nft", "chokepoint"))
ARMS = ("none", "agent-nft", "chokepoint")


def explained(text: str, seen: dict[str, Seen] | None = None) -> Explained:
    enforcers = {name: registry.load(name) for name in ARMS}
    natives = {name: one.compile(SCENARIO.policy, SCENARIO.topology) for name, one in enforcers.items()}
    return explain(parse(text, SCENARIO.topology), SCENARIO, enforcers, natives, seen or {})


@pytest.mark.parametrize(("text", "intended", "words"), [
    ("web-1/frontend api-1 8080/tcp", "shop calls api",
     ["it enforces nothing", "rule 'shop calls api'", "rule 'shop calls api'"]),
    ("web-1/frontend db 6379/tcp", "default", ["it enforces nothing", "no rule matches", "no rule matches"]),
    ("api-1/backup db 6379/tcp", "default", ["it enforces nothing", "widened", "widened"]),
    ("cam cam 554/tcp", "default", ["it enforces nothing", "it stays inside one host", "it stays inside one host"]),
    ("web-1 web-2 80/tcp", "default", ["it enforces nothing", "no rule matches", "it stays inside one segment"]),
])
def test_each_arm_says_what_it_will_do_and_why(text: str, intended: str, words: list[str]) -> None:
    found = explained(text)
    assert found.intended.rule == intended
    for arm, word in zip(found.arms, words, strict=True):
        assert word in arm.because
        assert arm.agrees is None


def test_an_observation_that_contradicts_the_arm_is_told_apart() -> None:
    flow = parse("web-1/frontend db 6379/tcp", SCENARIO.topology)

    def seen(outcome: Outcome, arrived: bool) -> Seen:
        return Seen(Observation(flow, outcome, 0, arrived, 0.0, None, None, 0))

    for outcome, arrived, agrees in ((Outcome.TIMED_OUT, False, True), (Outcome.OPEN, True, False),
                                     (Outcome.TIMED_OUT, True, False)):
        (arm,) = [a for a in explained(str(flow), {"agent-nft": seen(outcome, arrived)}).arms if a.seen]
        assert arm.agrees is agrees


def test_the_points_a_flow_passes() -> None:
    topology = SCENARIO.topology
    assert points(parse("web-1 db icmp", topology), topology) == ("web-1", topology.router, "db")
    assert points(parse("web-1 web-2 icmp", topology), topology) == ("web-1", "web-2")
    assert points(parse("cam cam 554/tcp", topology), topology) == ("cam",)


def test_the_marking_table_names_the_flow_alone() -> None:
    text = table(Flow("a", "p", "u", "b", "q", "tcp", 80, 6), "fd00::1", "fd00::2")
    assert "ip6 saddr fd00::1 ip6 daddr fd00::2 meta l4proto tcp th dport 80 meta nftrace set 1" in text
    assert "ip6 saddr fd00::2 ip6 daddr fd00::1 meta l4proto tcp th sport 80 meta nftrace set 1" in text
    assert "th dport" not in table(Flow("a", "p", "u", "b", "", "icmp", 0, 6), "fd00::1", "fd00::2")


def test_of_a_trace_only_decisions_on_the_flow_by_others_are_told() -> None:
    lines = [
        'trace id 1 inet labctl_trace output rule ip daddr 127.0.0.1 meta nftrace set 1 comment "nc_canary9" '
        "(verdict continue)",
        'trace id 1 inet agent output rule oif "lo" accept (verdict accept)',  # the canary's own
        "trace id 2 inet labctl_trace output rule ip daddr 10.0.0.2 meta nftrace set 1 (verdict continue)",
        "trace id 2 inet agent output packet: oif \"eth0\" ip saddr 10.0.0.1",
        "trace id 2 inet agent output rule jump lookup (verdict jump lookup)",
        "trace id 2 inet agent output rule meta l4proto tcp reject with tcp reset (verdict drop)",
        "trace id 2 inet agent output rule meta l4proto tcp reject with tcp reset (verdict drop)",
        "trace id 3 inet agent forward policy drop",
    ]
    assert list(decided("web-1", lines)) == [
        "web-1: inet agent output: meta l4proto tcp reject with tcp reset → drop",
        "web-1: inet agent forward: policy → drop"]
