"""All 317 hosts of a real enterprise, the part without packets: loaded, selected, compiled, each in seconds."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from bench import registry
from bench.selection import MATRIX_LIMIT, Selection, select
from lab.importers.csw import import_csw
from lab.model import Scenario
from lab.policy_sets import Oracle
from lab.scenario import loads

DATA = Path(os.environ.get("LABCTL_CSW", Path(__file__).parents[2].parent / "shared/data/csw-g21"))
pytestmark = pytest.mark.skipif(not (DATA / "groupings.gt.txt").is_file(),
                                reason=f"{DATA} is not there; set LABCTL_CSW to the csw-g21 directory")


@cache
def sample(limit: int = MATRIX_LIMIT, seed: int = 1) -> Selection:
    return select(replace(whole(), seed=seed), limit)


@cache
def whole() -> Scenario:
    return loads(import_csw(DATA, nodes="all").text, "g21-all.yaml")


def test_the_sample_has_every_allowed_flow_and_every_class() -> None:
    chosen = sample()
    assert len(whole().topology.hosts) == 317
    assert len(chosen.flows) == len(set(chosen.flows)) == MATRIX_LIMIT < chosen.total == 5_716_144
    for stratum, (taken, there) in chosen.strata.items():
        assert taken == there if stratum.startswith("allow") or "same host" in stratum else 0 < taken < there, stratum
    allowed = Oracle(whole().policy, whole().topology).verdicts(chosen.flows)
    assert sum(v.allow for v in allowed) == sum(n for name, (n, _) in chosen.strata.items() if name.startswith("allow"))


def test_the_sample_is_the_seeds() -> None:
    assert select(whole(), 5000).flows == sample(5000).flows != sample(5000, seed=2).flows


@pytest.mark.parametrize(("arm", "points"), [("agent-nft", 317), ("agent-nft-monitor", 317), ("chokepoint", 1)])
def test_every_arm_compiles_and_its_effect_is_the_policy_where_it_claims(arm: str, points: int) -> None:
    scenario, enforcer = whole(), registry.load(arm)
    native = enforcer.compile(scenario.policy, scenario.topology)
    deployment = enforcer.render(native, scenario.topology)
    assert len(deployment) == points
    placed = [sum(map(len, plan.files.values())) for plan in deployment.values()]
    assert max(placed) < 2_000_000, "one host's files must stay small: the rule set is grouped by peer, not by flow"
    flows = [f for f in sample(20_000).flows if enforcer.covers(f, scenario.topology)]
    meant, done = (Oracle(p, scenario.topology).verdicts(flows) for p in (scenario.policy, native.effective))
    assert [v.allow for v in meant] == [v.allow for v in done]
    assert bool(flows) == (arm != "agent-nft-monitor")
