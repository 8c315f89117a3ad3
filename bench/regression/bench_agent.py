"""How long one command of the host agent takes before it does anything: every host of a lab pays it. `make bench`."""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import registry
from lab.scenario import loads
from tests.e2e.test_scale import scenario_text

_TIMES = 10


def test_a_command_that_finds_no_daemon(benchmark) -> None:  # type: ignore[no-untyped-def]
    scenario = loads(scenario_text(4), "scale.yaml")
    enforcer = registry.load("agent-nft")
    plan = next(iter(enforcer.render(enforcer.compile(scenario.policy, scenario.topology), scenario.topology).values()))
    with TemporaryDirectory() as place:
        archive = Path(place) / "agent.pyz"
        archive.write_bytes(next(data for path, data in plan.files.items() if path.endswith("agent.pyz")))
        argv = [*plan.ready[:3], str(archive), "ready", "--dir", place]

        def ask() -> set[int]:
            return {subprocess.run(argv, capture_output=True, check=False).returncode for _ in range(_TIMES)}

        assert benchmark.pedantic(ask, rounds=3) == {1}
