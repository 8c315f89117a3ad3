"""How fast the probe is on 200 hosts, all pairs, and how fast each arm compiles: `make bench`."""

from __future__ import annotations

import os

import pytest

from bench import registry
from lab.model import Scenario
from lab.scenario import loads
from tests.e2e.isolated import call
from tests.e2e.test_scale import scenario_text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")
@pytest.mark.parametrize("dropped", [0.0, 0.3])
def test_attempts_a_second(benchmark, dropped: float) -> None:  # type: ignore[no-untyped-def]
    """The figure is `attempts_per_s` in the extra information: the time of the round includes standing up."""
    found = benchmark.pedantic(call, ("tests.e2e.test_scale", "all_pairs", {"dropped": dropped}), rounds=1)
    benchmark.extra_info.update(attempts_per_s=round(found["rate"]), up_s=round(found["up_s"], 2))
    free, planted = found["outcomes"]["free"], found["outcomes"]["planted"]
    assert free.get("OPEN", 0) + planted.get("TIMED_OUT", 0) >= 0.999 * found["attempts"]


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return loads(scenario_text(), "scale.yaml")


@pytest.mark.parametrize("arm", [name for name in registry.names() if name != "none"])
def test_compile_and_render_200_hosts(benchmark, scenario: Scenario, arm: str) -> None:  # type: ignore[no-untyped-def]
    enforcer = registry.load(arm)

    def both() -> int:
        return len(enforcer.render(enforcer.compile(scenario.policy, scenario.topology), scenario.topology))

    assert benchmark.pedantic(both, rounds=3) > 0
