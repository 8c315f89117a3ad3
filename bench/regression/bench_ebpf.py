"""agent-ebpf beside agent-nft and no agent, in one run: ratios with intervals, and what a policy takes to compile.

Absolute times of compile; of the datapath only ratios are of use. `make bench`; the datapath needs root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import registry
from lab.model import Point
from lab.scenario import load, loads
from tests.e2e.isolated import ROOT
from tests.e2e.test_scale import scenario_text

_BLOCKS, _BUDGET_S = 8, 900


def test_compile_two_hundred_hosts(benchmark) -> None:  # type: ignore[no-untyped-def]
    scenario = loads(scenario_text(200), "scale.yaml")
    arm = registry.load("agent-ebpf")
    native = benchmark.pedantic(lambda: arm.compile(scenario.policy, scenario.topology), rounds=1)
    assert len(native.rules) == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("rules", [0, 500])
def test_datapath_beside_agent_nft(benchmark, tmp_path: Path, rules: int) -> None:  # type: ignore[no-untyped-def]
    """The very arm that passes the matrix, its telemetry on; with three-tier's policy, and with ten thousand entries.

    Printed; gated is only that all were in force.
    """
    argv = [sys.executable, "-m", "bench.cli", "run", str(_scenario(tmp_path, rules)), "--arms", "agent-ebpf,agent-nft",
            "--json", "--blocks", str(_BLOCKS), "--results", str(tmp_path / "results")]

    def run() -> dict:  # type: ignore[type-arg]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=_BUDGET_S, check=False)
        assert done.stdout, done.stderr[-2000:]
        return dict(json.loads(done.stdout))

    summary = benchmark.pedantic(run, rounds=1)
    for name in ("agent-ebpf", "agent-nft"):
        arm = summary["arms"][name]
        assert arm["defects"] == 0
        told = {figure: arm["cost"][figure] for figure in ("crr_rate", "rr_p50_us", "cpu_per_conn_us")}
        benchmark.extra_info[name] = {figure: [one["ratio"], one["low"], one["high"]] for figure, one in told.items()}
        print(f"\n{name}, {rules} rules more: " + ", ".join(f"{figure} ×{one['ratio']} [{one['low']}–{one['high']}]"
                                                            for figure, one in told.items()))


def _scenario(directory: Path, rules: int) -> Path:
    """three-tier, with so many rules more about ports that nobody serves, each with entries of its own."""
    text = (ROOT / "scenarios/three-tier.yaml").read_text()
    shutil.copy(ROOT / "scenarios/shop.py", directory)
    last, ends = "    - {name: api reads store,", "from: {env: prod}, to: {env: prod}"
    assert text.count(last) == 1
    more = [f"    - {{name: more {at}, allow: {{{ends}, service: {10000 + at}/tcp}}}}\n" for at in range(rules)]
    path = directory / "three-tier.yaml"
    path.write_text(text.replace(last, "".join(more) + last))
    if rules:
        least = _least_entries(path)
        print(f"\nat least {least} entries on every host of the shop")
        assert least >= 10_000
    return path


def _least_entries(path: Path) -> int:
    scenario, arm = load(str(path)), registry.load("agent-ebpf")
    plans = arm.render(arm.compile(scenario.policy, scenario.topology), scenario.topology)
    found = []
    for host in ("web-1", "api-1", "db"):
        files = plans[Point("host", host)].files
        policy = json.loads(next(data for name, data in files.items() if name.endswith("policy.json")))
        found.append(sum(count for _, count, _, _ in policy["tables"]["maps"].values()))
    return min(found)
