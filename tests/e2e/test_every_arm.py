"""Every arm on every scenario, on real packets (pytest -m slow): no defect, nothing broken, every leak owned up to.

What each arm owns up to is judged without packets, against a rule that needs no enforcer: tests/unit/test_gaps_by_rule.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench import registry
from bench.report.summary import from_json
from lab.scenario import load
from tests.e2e.isolated import ROOT, needs_isolation, needs_root

pytestmark = [needs_root, needs_isolation, pytest.mark.e2e, pytest.mark.slow]
SCENARIOS = sorted(path.stem for path in (ROOT / "scenarios").glob("*.yaml") if load(path).backend == "mininet")
ARMS = [name for name in registry.names() if name != "none"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_defect_under_any_arm(scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [sys.executable, "-m", "bench.cli", "run", scenario, "--quick", "--blocks", "0", "--json",
            "--arms", ",".join(ARMS), "--results", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.stdout and "Traceback" not in done.stderr, done.stderr
    summary = from_json(done.stdout)
    ran = {name: arm for name, arm in summary.arms.items() if not arm.unsupported}
    with capsys.disabled():
        strained = {name: f" ({arm.strained} strained)" for name, arm in ran.items() if arm.strained}
        print(f"\n{scenario}: " + ", ".join(f"{name} {arm.leaks}{strained.get(name, '')}" for name, arm in ran.items()))
        print("".join(f"  {name} unsupported: {arm.unsupported}\n" for name, arm in summary.arms.items()
                      if arm.unsupported), end="")
    assert {"none", "agent-nft", "agent-ebpf", "virtual-switch"} <= ran.keys()
    for name, arm in ran.items():
        assert (arm.defects, arm.inconclusive, arm.breaks) == (0, 0, 0), (name, arm.findings)
        assert arm.leaks == arm.gaps <= arm.denied, name
        assert sum(gap.flows for gap in arm.gap_classes) == arm.gaps, name
    assert ran["none"].leaks == ran["none"].denied
