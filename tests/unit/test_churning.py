"""Churn: what a round is about, what became of it, and distributions over rounds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import numpy as np
import pytest

from bench import registry
from bench.analysis import churning, watched
from bench.analysis.beats import Beat
from bench.analysis.churning import spread
from bench.analysis.exposure import Settled
from bench.churn import HEIR, NEWCOMER, plans
from bench.drill import intended
from bench.episode import other_policy
from lab.backends.mininet_churn import with_host
from lab.faults import FaultError
from lab.model import Flow, Outcome, Scenario
from lab.policy import flows
from lab.scenario import load

ROOT = Path(__file__).parents[2]
DENIED = Flow("a", "p", "u", "b", "q", "tcp", 80, 4)
ALLOWED = Flow("a", "p", "u", "c", "q", "tcp", 80, 4)
PARTS = dict.fromkeys(churning.PARTS, 0.25)


@pytest.fixture(scope="module")
def ephemeral() -> Scenario:
    return load(ROOT / "scenarios/ephemeral.yaml", arms=registry.names())


# --- rounds ----------------------------------------------------------------------------------------


def test_rounds_are_the_same_for_a_seed_and_differ_by_seed(ephemeral: Scenario) -> None:
    assert list(plans(ephemeral, 4)) == list(plans(ephemeral, 4))
    assert list(plans(ephemeral, 4)) != list(plans(replace(ephemeral, seed=2), 4))
    assert list(plans(ephemeral, 4)) == list(plans(ephemeral, 6))[:4]


def test_addresses_are_free_of_their_segment_and_each_others(ephemeral: Scenario) -> None:
    taken = {host.v4 for host in ephemeral.topology.hosts.values()}
    for plan in plans(ephemeral, 20):
        segment = ephemeral.topology.segments[plan.newcomer.segment]
        own = [plan.newcomer.v4, plan.moved.v4, plan.heir.v4]
        assert len({*own, segment.gateway4}) == 4
        assert not taken & set(own)
        assert all(ip_address(a) in ip_network(segment.v4) for a in own)
        assert ip_network(segment.v4).broadcast_address not in map(ip_address, own)
        assert ip_address(plan.moved.v6) in ip_network(segment.v6)


def test_watched_flows_are_the_newcomers_and_mean_what_the_policy_says(ephemeral: Scenario) -> None:
    for plan in plans(ephemeral, 12):
        topology = with_host(ephemeral.topology, plan.newcomer)
        assert all((f.source == NEWCOMER) != (f.target == NEWCOMER) for f in (*plan.denied, *plan.allowed))
        assert not any(intended(ephemeral.policy, topology, plan.denied).values())
        assert all(intended(ephemeral.policy, topology, plan.allowed).values())


def test_what_an_heir_may_inherit_is_what_the_newcomer_had_and_the_heir_may_not(ephemeral: Scenario) -> None:
    for plan in plans(ephemeral, 12):
        heir = replace(plan.heir, v4=plan.moved.v4, v6=plan.moved.v6)
        assert not any(intended(ephemeral.policy, with_host(ephemeral.topology, heir), plan.stale).values())
        back = [replace(f, source=NEWCOMER if f.source == HEIR else f.source,
                        target=NEWCOMER if f.target == HEIR else f.target) for f in plan.stale]
        assert all(intended(ephemeral.policy, with_host(ephemeral.topology, plan.moved), back).values())


def test_a_scenario_that_allows_all_or_nothing_has_no_round(ephemeral: Scenario) -> None:
    with pytest.raises(FaultError, match="nobody for a newcomer to be like"):
        next(plans(replace(ephemeral, policy=replace(ephemeral.policy, default="allow", rules=())), 1))


# --- which flows are watched, which policy is another -----------------------------------------------


def test_of_every_kind_there_is_one_is_watched_before_two_of_any(ephemeral: Scenario) -> None:
    verdicts = intended(ephemeral.policy, ephemeral.topology, flows(ephemeral))
    chosen = watched.choose(verdicts, ephemeral.topology, 1, 6, 12)
    denied = [f for f in chosen if not verdicts[f]]
    assert (len(chosen), len(denied)) == (18, 12)
    assert {watched.place(f, ephemeral.topology) for f in denied} == {"same host", "same segment", "across segments"}
    assert chosen == watched.choose(verdicts, ephemeral.topology, 1, 6, 12)
    assert chosen != watched.choose(verdicts, ephemeral.topology, 2, 6, 12)


def test_another_policy_revokes_a_watched_flow_and_grants_one(ephemeral: Scenario) -> None:
    verdicts = intended(ephemeral.policy, ephemeral.topology, flows(ephemeral))
    chosen = watched.choose(verdicts, ephemeral.topology, 1)
    before = {f: verdicts[f] for f in chosen}
    after = intended(other_policy(ephemeral, before).policy, ephemeral.topology, chosen)
    assert any(before[f] and not after[f] for f in chosen)
    assert any(not before[f] and after[f] for f in chosen)
    with pytest.raises(FaultError, match="none to revoke"):
        other_policy(replace(ephemeral, policy=replace(ephemeral.policy, default="allow", rules=())), before)


# --- judging ---------------------------------------------------------------------------------------


def beats(flow: Flow, passes: Sequence[bool]) -> list[Beat]:
    return [Beat(tick, flow, 100 + tick / 10, Outcome.OPEN if so else Outcome.TIMED_OUT, 0, so, None)
            for tick, so in enumerate(passes)]


def test_a_step_ends_with_the_last_leak_and_the_last_failure() -> None:
    seen = beats(DENIED, [True, False, True, False, False]) + beats(ALLOWED, [False, False, False, True, True])
    step = churning.judge("appear", seen, 100.0, [DENIED], [ALLOWED], PARTS, 3)
    assert step.protected == Settled(pytest.approx(0.2), pytest.approx(0.3))
    assert step.served == Settled(pytest.approx(0.2), pytest.approx(0.3))
    assert (step.leaked, step.failed, step.told_s, step.points) == (1, 1, 1.0, 3)


def test_a_step_that_never_ends_says_so() -> None:
    step = churning.judge("depart", beats(DENIED, [True] * 5), 100.0, [DENIED], [], PARTS, 0)
    assert step.protected is None
    assert (step.denied, step.allowed, step.served) == (1, 0, None)


def test_calm_needs_every_flow_tried() -> None:
    good = beats(DENIED, [True, False, False]) + beats(ALLOWED, [False, True, True])
    assert churning.calm(good, 100.1, [DENIED], [ALLOWED])
    assert not churning.calm(good, 100.0, [DENIED], [ALLOWED])
    assert not churning.calm(good, 100.25, [DENIED], [ALLOWED])
    assert not churning.calm([], 100.0, [], [])


# --- distributions ---------------------------------------------------------------------------------


def test_rounds_in_which_it_never_came_about_are_longer_than_all_others() -> None:
    found = spread([0.1, 0.2, None])
    assert (found.n, found.never, found.median, found.worst) == (3, 1, 0.2, None)
    assert spread([None, None, 0.1]).median is None
    assert spread([]).n == 0
    assert spread([0.5]).median == 0.5
    assert (spread([0.1] * 5).low, spread([0.1] * 6).low) == (None, 0.1)


def test_the_median_s_interval_covers_it() -> None:
    """In 95 of 100 resampled experiments or more (with binomial slack), at any number of rounds; a shorter fails."""
    rng = random.Random(1)
    for n in (8, 12, 30):
        hits = shorter = 0
        for _ in range(1000):
            values = [rng.expovariate(1.0) for _ in range(n)]
            found = spread(values)
            assert found.low is not None and found.high is not None
            hits += found.low <= np.log(2) <= found.high
            ordered, inside = sorted(values), n // 2 - 1
            shorter += ordered[inside] <= np.log(2) <= ordered[n - 1 - inside]
        assert hits >= 940
        assert shorter < 940
