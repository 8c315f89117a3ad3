"""agent-ebpf beside agent-nft and no agent, in one run: ratios with intervals, and what a policy takes to compile.

Absolute times of compile; of the datapath only ratios are of use. `make bench`; the datapath needs root.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import registry
from lab.scenario import loads
from tests.e2e.isolated import ROOT
from tests.e2e.test_scale import scenario_text

_BLOCKS, _BUDGET_S = 8, 900


def test_compile_two_hundred_hosts(benchmark) -> None:  # type: ignore[no-untyped-def]
    scenario = loads(scenario_text(200), "scale.yaml")
    arm = registry.load("agent-ebpf")
    native = benchmark.pedantic(lambda: arm.compile(scenario.policy, scenario.topology), rounds=1)
    assert len(native.rules) == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_datapath_beside_agent_nft(benchmark, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The very arm that passes the matrix, its telemetry on. Printed; gated is only that all were in force."""
    argv = [sys.executable, "-m", "bench.cli", "run", "three-tier", "--arms", "agent-ebpf,agent-nft", "--json",
            "--blocks", str(_BLOCKS), "--results", str(tmp_path)]

    def run() -> dict:  # type: ignore[type-arg]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=_BUDGET_S, check=False)
        return dict(json.loads(done.stdout))

    summary = benchmark.pedantic(run, rounds=1)
    for name in ("agent-ebpf", "agent-nft"):
        arm = summary["arms"][name]
        assert arm["defects"] == 0
        told = {figure: arm["cost"][figure] for figure in ("crr_rate", "rr_p50_us", "cpu_per_conn_us")}
        benchmark.extra_info[name] = {figure: [one["ratio"], one["low"], one["high"]] for figure, one in told.items()}
        print(f"\n{name}: " + ", ".join(f"{figure} ×{one['ratio']} [{one['low']}–{one['high']}]"
                                        for figure, one in told.items()))
