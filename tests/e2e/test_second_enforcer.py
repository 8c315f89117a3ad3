"""An enforcer written from docs/enforcers.md alone works as it claims, and a lie about its coverage is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.report.summary import Summary, from_json
from tests.e2e.isolated import ROOT, needs_root

pytestmark = [needs_root, pytest.mark.e2e]
CLAIMS_ALL = """
from tcgate import TcGate

class Overclaim(TcGate):
    \"\"\"tcgate that claims everything.\"\"\"
    name = "overclaim"

    def covers(self, flow, topology):
        return True
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as pip would leave it."""
    path = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "tests/data/second_enforcer/tcgate", path / "tcgate")
    (path / "overclaim.py").write_text(CLAIMS_ALL)
    info = path / "labctl_tcgate-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: labctl-tcgate\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(
        "[labctl.enforcers]\ntcgate = tcgate:TcGate\noverclaim = overclaim:Overclaim\n")
    return path


def run(site: Path, arm: str) -> tuple[int, Summary]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.cli", "run", "three-tier", "--arms", arm, "--quick", "--blocks", "0", "--json",
         "--results", str(site / "results")], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True, text=True, timeout=500, check=False)
    assert "Traceback" not in done.stderr
    found = from_json(done.stdout)
    if found.arms[arm].unsupported:
        pytest.skip(str(found.arms[arm].unsupported))
    return done.returncode, found


def test_it_does_what_it_claims(site: Path) -> None:
    status, found = run(site, "tcgate")
    arm = found.arms["tcgate"]
    assert status in (0, 4)
    assert (arm.defects, arm.inconclusive, arm.breaks) == (0, 0, 0), arm.findings
    # what stays inside of a host, the camera that takes no agent, and rules that name a process: as it says itself
    assert arm.gaps == arm.leaks == 280 + 216 + 16
    assert arm.visibility["flow"].recall is not None and arm.visibility["flow"].recall > 0.9


def test_claiming_more_than_it_does_is_found_out(site: Path) -> None:
    status, found = run(site, "overclaim")
    assert status == 1
    assert found.arms["overclaim"].defects == 280 + 216
