"""Two arms that keep their files under the same names: each block must run the arm it says it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.isolated import ROOT, needs_root


@needs_root
@pytest.mark.e2e
def test_a_block_runs_the_arm_it_names(tmp_path: Path) -> None:
    """The enforcing agent came after the monitor; with its files still there, the monitor's block would be invalid."""
    argv = [sys.executable, "-m", "bench.cli", "run", "three-tier", "--arms", "agent-nft-monitor,agent-nft", "--quick",
            "--blocks", "1", "--json", "--results", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    summary = json.loads(done.stdout)
    assert summary["invalid"] == [], done.stderr
    assert done.returncode == 0
    for arm in ("agent-nft-monitor", "agent-nft"):
        assert summary["arms"][arm]["verified"]["wrong"] == 0
        assert summary["arms"][arm]["verified"]["n"] > 0
    monitor = summary["arms"]["agent-nft-monitor"]
    assert monitor["leaks"] == monitor["denied"] > 0, "a monitor lets everything pass"
    assert monitor["visibility"]["verdict"]["recall"] > 0.9, "and says of it what it would have done"
