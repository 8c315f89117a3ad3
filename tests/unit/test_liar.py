"""The enforcer that lies: what it says is what an honest one says, what it places is not, and nobody can ask for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import registry
from bench.selftest.session import SCENARIO
from enforcers.agentless.chokepoint import Chokepoint
from enforcers.liar import fault
from enforcers.liar.liar import DIRECTORY, Delay, Liar, Lie
from lab.bpf import build
from lab.model import Point, Service
from lab.scenario import load

WORLD = load(SCENARIO)
ROUTER = Point("router", WORLD.topology.router)


def rules(**lie: Any) -> str:
    return Liar("liar", Lie(**lie)).compile(WORLD.policy, WORLD.topology).rules[ROUTER]


def test_no_user_can_ask_for_a_liar() -> None:
    assert not [name for name in registry.names() if "liar" in name]


def test_without_a_lie_it_is_the_firewall_underneath() -> None:
    assert rules() == Chokepoint().compile(WORLD.policy, WORLD.topology).rules[ROUTER]


@pytest.mark.parametrize("lie", [{"leak": Service("tcp", 7200, 7200)}, {"drop_rule": "administer"}])
def test_it_claims_what_it_does_not_do(lie: dict[str, Any]) -> None:
    native = Liar("liar", Lie(**lie)).compile(WORLD.policy, WORLD.topology)
    honest = Chokepoint().compile(WORLD.policy, WORLD.topology)
    assert native.effective == honest.effective and native.approximations == honest.approximations
    assert native.rules != honest.rules


def test_what_is_planted_is_named_in_its_rules() -> None:
    assert "7200" in rules(leak=Service("tcp", 7200, 7200)) and "7200" not in rules()
    assert "7400" in rules() and "7400" not in rules(drop_rule="administer")


def test_a_bare_liar_claims_nothing() -> None:
    liar = Liar("liar", Lie(enforces=False, delay=Delay("10.91.2.2", 7000, 1)))
    native = liar.compile(WORLD.policy, WORLD.topology)
    assert native.effective.default == "allow" and native.approximations
    plan = liar.render(native, WORLD.topology)[ROUTER]
    assert json.loads(plan.files[f"{DIRECTORY}/fault.json"])["base"] == {}


def test_telemetry_is_lost_by_the_flow_and_by_the_seed() -> None:
    record = {"t": "flow", "time": 1.0, "proto": "tcp", "source": "10.91.0.2", "sport": 1, "target": "10.91.2.2",
              "dport": 7000, "process": None, "user": None, "target_process": None, "bytes": 1, "packets": 1}
    lines = [json.dumps({**record, "sport": 20000 + i // 2}).encode() for i in range(4000)]  # each flow is told twice
    told = [s.sport for s in Liar("liar", Lie(lose_telemetry=0.05)).sightings(ROUTER, lines)]
    assert all(told.count(sport) == 2 for sport in set(told[:100]))
    assert len(told) == 0.95 * len(lines), "as many as planted, whatever ports the kernel gave"
    assert told != [s.sport for s in Liar("liar", Lie(lose_telemetry=0.05, seed=2)).sightings(ROUTER, lines)]
    assert len(list(Liar("liar", Lie()).sightings(ROUTER, lines))) == len(lines)


def test_median_of_the_waits() -> None:
    assert fault._median_ns({2000: 3, 2001: 1}) == 200_050
    assert fault._median_ns({}) is None


def test_a_missing_compiler_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda _name: None)
    with pytest.raises(build.BpfBuildError, match="clang is not installed; apt-get install"):
        build.compiled(registry.delay_source(), tmp_path)


def test_a_program_that_is_kept_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if build.shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    first = build.compiled(registry.delay_source(), tmp_path)
    monkeypatch.setattr(build.shutil, "which", lambda _name: None)
    assert build.compiled(registry.delay_source(), tmp_path) == first and len(list(tmp_path.iterdir())) == 1


def test_the_scenario_is_one_where_every_flow_between_hosts_crosses_the_router() -> None:
    hosts = WORLD.topology.hosts.values()
    assert len({host.segment for host in hosts}) == len(hosts)
    assert replace(WORLD, arms=()).policy.default == "deny"
