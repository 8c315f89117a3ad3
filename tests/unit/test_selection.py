"""Above the limit a sample is probed: within the limit, no class missed, the same for the same seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.selection import select
from lab.model import Flow, Scenario
from lab.policy import decide
from lab.scenario import load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load(ROOT / "scenarios/three-tier.yaml")


def stratum(scenario: Scenario, flow: Flow) -> str:
    """The class of a flow in words, worked out anew from the flow and the scalar oracle."""
    intended = "allow" if decide(scenario.policy, flow, scenario.topology).allow else "deny"
    where = "same host" if flow.source == flow.target else "between hosts"
    return f"{intended}, {flow.proto}, IPv{flow.family}, {where}"


def counted(scenario: Scenario, flows: tuple[Flow, ...]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for flow in flows:
        counts[stratum(scenario, flow)] = counts.get(stratum(scenario, flow), 0) + 1
    return counts


def test_everything_that_fits_is_taken(scenario: Scenario) -> None:
    whole = select(scenario)
    assert not whole.sampled and whole.total == len(whole.flows) == len(set(whole.flows))
    assert {label: of for label, (_taken, of) in whole.strata.items()} == counted(scenario, whole.flows)
    assert select(scenario, limit=whole.total).flows == whole.flows


@pytest.mark.parametrize("limit", [20, 100, 333, 1000, 2199])
def test_a_sample_keeps_to_the_limit_and_misses_no_class(scenario: Scenario, limit: int) -> None:
    whole, part = select(scenario), select(scenario, limit=limit)
    assert part.sampled and part.total == whole.total
    assert len(part.flows) == len(set(part.flows)) == limit
    assert set(part.flows) < set(whole.flows)
    assert set(part.strata) == set(whole.strata) and all(taken > 0 for taken, _of in part.strata.values())
    assert {label: taken for label, (taken, _of) in part.strata.items()} == counted(scenario, part.flows)


def test_small_classes_are_whole(scenario: Scenario) -> None:
    """What is rarest, such as the allowed flows, is what must not be left to chance."""
    part = select(scenario, limit=600)
    share = 600 // len(part.strata)
    assert all(taken == of for taken, of in part.strata.values() if of <= share)
    assert any(taken < of for taken, of in part.strata.values())


def test_the_seed_decides(scenario: Scenario) -> None:
    again, other = select(scenario, limit=200), select(replace(scenario, seed=scenario.seed + 1), limit=200)
    assert select(scenario, limit=200).flows == again.flows != other.flows
    assert again.strata == other.strata
