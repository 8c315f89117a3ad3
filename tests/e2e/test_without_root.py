"""Without root: the same matrix and the same gaps as with it; what cannot be told is not told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bench.report.summary import Summary, from_json
from tests.e2e.isolated import ROOT, needs_isolation

pytestmark = [needs_isolation, pytest.mark.e2e]
ORDINARY = 54321
ARMS = yaml.safe_load((ROOT / "scenarios/three-tier.yaml").read_text())["arms"]
GOLDEN = {arm: gaps for arm, gaps in yaml.safe_load((ROOT / "tests/golden/three-tier-gaps.yaml").read_text()).items()
          if arm in ARMS}  # the others have tests of their own


def as_ordinary(directory: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """labctl as a user without any privilege: ourselves, or an id of our choice where we are root."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(directory), "LC_ALL": "C.UTF-8"}
    who = {} if os.geteuid() else {"user": ORDINARY, "group": ORDINARY, "extra_groups": []}
    return subprocess.run([sys.executable, "-m", "bench.cli", *argv], cwd=ROOT, capture_output=True, text=True,
                          timeout=300, check=False, env=env, **who)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="labctl-test-") as name:  # pytest's own is closed to others
        if os.geteuid() == 0:
            os.chown(name, ORDINARY, ORDINARY)
        done = as_ordinary(Path(name), "--help")
        if done.returncode:
            pytest.skip(f"another user cannot run what lies here: {done.stderr.strip()[-200:]}")
        yield Path(name)


@pytest.fixture(scope="module")
def found(home: Path) -> Summary:
    done = as_ordinary(home, "run", "three-tier", "--quick", "--blocks", "1", "--json", "--results", str(home / "r"))
    assert done.returncode in (0, 4), done.stderr  # 4: too busy a machine for the generator; verdicts do not care
    assert "Traceback" not in done.stderr
    return from_json(done.stdout)


@pytest.mark.parametrize("arm", sorted(GOLDEN))
def test_the_matrix_and_the_gaps_are_those_with_root(found: Summary, arm: str) -> None:
    got = found.arms[arm]
    assert got.unsupported is None
    assert (got.defects, got.inconclusive, got.breaks) == (0, 0, 0), got.findings
    assert got.gaps == got.leaks == GOLDEN[arm]["total"]


def test_what_cannot_be_measured_is_left_out_and_said(found: Summary) -> None:
    if found.environment["several_users"]:
        pytest.skip("this user has subordinate ids: every declared user is real")
    assert all(arm.visibility["user"].recall is None for arm in found.arms.values())
    assert any("one and the same user" in note for note in found.notes)
    assert found.environment["cgroup2"] is True or any("CPU and memory" in note for note in found.notes)


def test_a_standing_lab_works_without_root_and_leaves_nothing(home: Path) -> None:
    up = as_ordinary(home, "up", "three-tier", "--arm", "agent-nft", "--json")
    assert up.returncode == 0, up.stderr
    run_id = json.loads(up.stdout)["id"]
    try:
        addresses = as_ordinary(home, "exec", "db", "--", "ip", "-br", "addr")
        assert "10.10.3.2/24" in addresses.stdout, addresses.stderr
        denied = as_ordinary(home, "probe", "web-1/frontend", "db", "6379/tcp", "--expect", "deny")
        assert denied.returncode == 0, denied.stdout + denied.stderr
    finally:
        down = as_ordinary(home, "down")
    assert down.returncode == 0, down.stderr
    assert run_id not in as_ordinary(home, "ls").stdout
