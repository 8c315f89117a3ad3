"""`labctl bottleneck` on real packets, small: offered is what was asked for, policies were in force, all is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.isolated import ROOT, needs_isolation, needs_root

pytestmark = [needs_root, needs_isolation, pytest.mark.e2e]
RATE = 100


def test_two_pairs_of_one_segment(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    text = (ROOT / "scenarios/hairpin-bottleneck.yaml").read_text().replace("count: 12", "count: 2")
    file.write_text(text.replace("name: hairpin-bottleneck", "name: two"))
    argv = [sys.executable, "-m", "bench.cli", "bottleneck", str(file), "--arms", "none,hairpin", "--rate", str(RATE),
            "--rounds", "1", "--seconds", "0.5", "--json", "--results", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {(p["arm"], p["pairs"], p["offered"]) for p in found["points"]} == {
        (arm, pairs, RATE * pairs) for arm in ("none", "hairpin") for pairs in (1, 2)}
    for point in found["points"]:
        assert point["errors"] == 0
        assert 0 < point["achieved"] <= point["offered"] * 1.05, "never more than is offered"
        assert 0 < point["p50_us"] <= point["p99_us"]
    (saved,) = (tmp_path / "two").iterdir()
    assert json.loads((saved / "bottleneck.json").read_text())["curves"] == found["curves"]
    assert "<svg" in (saved / "bottleneck.svg").read_text()
