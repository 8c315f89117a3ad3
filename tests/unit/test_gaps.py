"""The gaps that each arm claims on a scenario equal the list that was derived by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import registry
from bench.analysis import matrices
from lab import policy
from lab.model import Flow
from lab.policy_sets import Oracle
from lab.scenario import load

ROOT = Path(__file__).parents[2]
GOLDEN: dict[tuple[str, str], Any] = {
    (path.name.removesuffix("-gaps.yaml"), arm): gaps for path in sorted((ROOT / "tests/golden").glob("*-gaps.yaml"))
    for arm, gaps in yaml.safe_load(path.read_text()).items()}


def service(flow: Flow) -> str:
    return "icmp" if flow.proto == "icmp" else f"{flow.port}/{flow.proto}"


def matching(flows: tuple[Flow, ...], pattern: list[str]) -> set[Flow]:
    """The flows of a pattern; a service that begins with "-" is left out of it."""
    sources, processes, targets, services = (set(part.split()) for part in pattern)
    return {f for f in flows
            if f.source in sources and f.target in targets and processes & {"*", f.process, f"{f.process}({f.user})"}
            and services & {"*", service(f)} and f"-{service(f)}" not in services}


@pytest.mark.parametrize(("name", "arm"), sorted(GOLDEN))
def test_gaps_are_those_derived_by_hand(name: str, arm: str) -> None:
    scenario = load(ROOT / "scenarios" / f"{name}.yaml")
    topology, enforcer = scenario.topology, registry.load(arm)
    native = enforcer.compile(scenario.policy, topology)
    flows = policy.flows(scenario)
    intended = [v.allow for v in Oracle(scenario.policy, topology).verdicts(flows)]
    effective = [v.allow for v in Oracle(native.effective, topology).verdicts(flows)]
    covered = [enforcer.covers(flow, topology) for flow in flows]
    expected = [e or not c for e, c in zip(effective, covered, strict=True)]
    rows = matrices.matrix(flows, intended=intended, expected=expected, covered=covered, observed={}, baseline={},
                           topology=topology).rows
    claimed = matrices.claims(rows, topology)
    by_flow = {row.flow: matrices.explain_gap(row, native.approximations, topology, claimed)
               for row in rows if row.gap}

    allowed = {flow for flow, is_allowed in zip(flows, intended, strict=True) if is_allowed}
    wanted: set[Flow] = set()
    for group in GOLDEN[name, arm]["classes"]:
        members = matching(flows, group["pattern"]) - allowed
        assert len(members) == group["flows"], group
        assert not members & wanted, f"two patterns share a flow: {group}"
        wanted |= members
        for flow in members & set(by_flow):
            assert group["why"] in by_flow[flow], (flow, by_flow[flow])
    assert len(wanted) == GOLDEN[name, arm]["total"]
    assert set(by_flow) == wanted
