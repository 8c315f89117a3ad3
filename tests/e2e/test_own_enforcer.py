"""What docs/enforcers.md promises: its example, taken from its text, installed and run on real packets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench.report.summary import Summary, from_json
from bench.store import read
from tests.e2e.isolated import ROOT, needs_root

pytestmark = [needs_root, pytest.mark.e2e]
DOCS = (ROOT / "docs/enforcers.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", DOCS, re.S | re.M)
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
EXAMPLE, RECORDER, SEEN = PYTHON
SCENARIO = next(text for kind, text in BLOCKS if kind == "yaml")
LIAR = '''
from quarantine import Quarantine

class Liar(Quarantine):
    """Quarantine that claims everything."""
    name = "liar"

    def covers(self, flow, topology):
        return True
'''
LEFT_OPEN = {("user", "web"), ("web", "db")}  # somebody there may reach something, so all may reach all


def install(site: Path) -> None:
    """The files of the docs as pip would leave them, and beside them a liar and a broken one."""
    points = next(text for kind, text in BLOCKS if kind == "toml" and "labctl.enforcers" in text)
    assert 'quarantine = "quarantine:Quarantine"' in points and 'py-modules = ["quarantine"]' in points
    assert "quarantine-seen = " in DOCS
    for name, text in (("quarantine", EXAMPLE), ("watch", RECORDER), ("quarantine_seen", SEEN), ("liar", LIAR)):
        (site / f"{name}.py").write_text(text)
    info = site / "labctl_quarantine-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: labctl-quarantine\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(
        "[labctl.enforcers]\nquarantine = quarantine:Quarantine\nquarantine-seen = quarantine_seen:Seen\n"
        "liar = liar:Liar\nbroken = not_there:Nothing\n")


def labctl(site: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(site), "NO_COLOR": "1"}
    return subprocess.run([sys.executable, "-m", "bench.cli", *args], cwd=ROOT, env=env, capture_output=True, text=True,
                          timeout=500, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("site")
    install(path)
    (path / "small.yaml").write_text(SCENARIO)
    return path


def run(site: Path, arms: str) -> tuple[int, Summary, list[dict[str, object]]]:
    results = site / f"results-{arms.replace(',', '-')}"
    done = labctl(site, "run", str(site / "small.yaml"), "--arms", arms, "--blocks", "0", "--json",
                  "--results", str(results))
    assert done.stdout, done.stderr
    (saved,) = (results / "small").iterdir()
    return done.returncode, from_json(done.stdout), list(read(saved / "observations.jsonl.gz"))


@pytest.fixture(scope="module")
def honest(site: Path) -> tuple[int, Summary, list[dict[str, object]]]:
    return run(site, "quarantine,quarantine-seen")


def test_the_example_is_short() -> None:
    lines = [line for line in EXAMPLE.splitlines() if line.strip()]
    assert len(lines) < 60, len(lines)


def test_the_scenario_of_the_docs_is_right(site: Path) -> None:
    assert "4 hosts, 2 rules" in labctl(site, "validate", str(site / "small.yaml")).stdout


def test_arms_lists_it_with_what_it_claims(site: Path) -> None:
    done = labctl(site, "arms", "--json")
    assert done.returncode == 0, done.stderr
    arms = {arm["name"]: arm for arm in json.loads(done.stdout)}
    mine = arms["quarantine"]
    assert mine["package"] == "labctl-quarantine" and mine["description"].startswith("Blocks whole peers")
    assert mine["runs_here"] and [need["feature"] for need in mine["needs"]] == ["nftables"]
    assert mine["coverage"] == {
        "same host": "no", "same segment": "yes", "across segments": "yes", "to unmanaged": "no",
        "from unmanaged": "yes", "between unmanaged": "no", "icmp": "yes", "ipv6": "yes", "spoofed source": "no",
        "process": "no", "user": "no"}
    assert set(arms["liar"]["coverage"].values()) == {"yes", "no"} and arms["liar"]["coverage"]["same host"] == "yes"
    assert "ModuleNotFoundError: No module named 'not_there'" in arms["broken"]["broken"]


def test_it_has_no_defect_and_the_docs_figures(honest: tuple[int, Summary, list[dict[str, object]]]) -> None:
    status, summary, _raw = honest
    assert status == 0
    told = dict(re.findall(r"^(leaks|defects|gaps \(by design\)|inconclusive) +\S+(?: of \d+)? +(\d+)", DOCS, re.M))
    for name in ("quarantine", "quarantine-seen"):
        arm = summary.arms[name]
        assert (arm.defects, arm.breaks, arm.inconclusive) == (0, 0, 0), arm.findings
        assert arm.leaks == arm.gaps == int(told["leaks"]) == int(told["gaps (by design)"])
        assert 0 < arm.leaks < summary.arms["none"].leaks


def test_what_leaks_is_what_it_announced(honest: tuple[int, Summary, list[dict[str, object]]]) -> None:
    """Pair by pair, as one derives it from the policy by hand."""
    tried, through = Counter(), Counter()
    for row in honest[2]:
        if row["arm"] == "quarantine" and row["phase"] == "matrix":
            flow = row["flow"]
            pair = (flow["source"], flow["target"])
            tried[pair] += 1
            through[pair] += bool(row["arrived"] or row["outcome"] == "OPEN")
    assert len(tried) == 16
    for pair, n in tried.items():
        free = pair[0] == pair[1] or pair[1] == "cam" or pair in LEFT_OPEN
        assert through[pair] == (n if free else 0), pair


def test_its_recorder_sees(honest: tuple[int, Summary, list[dict[str, object]]]) -> None:
    blind, seeing = (honest[1].arms[name].visibility for name in ("quarantine", "quarantine-seen"))
    assert blind["flow"].recall == 0
    assert seeing["flow"].recall > 0.5  # of TCP and UDP, 80 % of all, a busy machine may lose some
    assert seeing["process"].recall == 0


def test_a_claim_that_is_false_is_found(site: Path) -> None:
    status, summary, _raw = run(site, "liar")
    arm = summary.arms["liar"]
    assert status == 1
    assert arm.defects > 0 and any("expected deny, observed OPEN" in finding for finding in arm.findings)


def test_a_broken_arm_is_one_line_and_only_its_own(site: Path) -> None:
    done = labctl(site, "run", str(site / "small.yaml"), "--arms", "broken", "--results", str(site / "none"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.strip() == ("labctl: arm 'broken' (not_there:Nothing) is broken: "
                                   "ModuleNotFoundError: No module named 'not_there'")
