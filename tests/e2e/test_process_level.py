"""process-level on real packets: every arm's gaps as derived by hand; agent-ebpf has none and sees everything."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections import Counter

import pytest
import yaml

from bench.report.summary import Summary, from_json
from enforcers.agent.agent_ebpf import AgentEbpf
from lab import features
from tests.e2e.isolated import ROOT, call, needs_isolation, needs_root
from tests.e2e.process_level import SHORT

MISSING = features.missing(AgentEbpf().needs())
pytestmark = [needs_root, needs_isolation, pytest.mark.e2e]
needs_ebpf = pytest.mark.skipif(bool(MISSING), reason=f"no eBPF agent here: {MISSING}")
ARMS = yaml.safe_load((ROOT / "scenarios/process-level.yaml").read_text())["arms"]
GOLDEN = yaml.safe_load((ROOT / "tests/golden/process-level-gaps.yaml").read_text())
HELPER = "tests.e2e.process_level"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    results = tmp_path_factory.mktemp("results")
    argv = [sys.executable, "-m", "bench.cli", "run", "process-level", "--blocks", "0", "--json", "--results",
            str(results)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return from_json(done.stdout)


def test_every_arm_of_it_has_a_list(found: Summary) -> None:
    assert set(ARMS) - {"none"} <= set(GOLDEN)
    assert found.arms["none"].flows == 2520


@pytest.mark.parametrize("arm", [arm for arm in sorted(GOLDEN) if arm in ARMS])
def test_the_gaps_are_those_derived_by_hand(found: Summary, arm: str) -> None:
    got = found.arms[arm]
    if got.unsupported:
        pytest.skip(got.unsupported)
    assert (got.defects, got.inconclusive, got.breaks) == (0, 0, 0), got.findings
    assert got.gaps == got.leaks == GOLDEN[arm]["total"]


@needs_ebpf
def test_the_agent_names_every_program_script_and_user(found: Summary) -> None:
    seen = found.arms["agent-ebpf"].visibility
    assert {field: got.recall for field, got in seen.items()} == dict.fromkeys(
        ("flow", "process", "user", "bytes", "verdict"), 1.0)
    told = found.arms["agent-ebpf"].policy
    assert told and (told.widened, told.narrowed, told.omitted) == (0, 0, 0)


@needs_ebpf
def test_an_agent_that_is_not_told_of_scripts_breaks_those_that_may() -> None:
    """The plant: so the run above would notice."""
    wrong = call(HELPER, "without_scripts")
    assert wrong and all("/report(" in text or "/nightly(" in text for text in wrong)


@needs_ebpf
def test_processes_that_live_for_milliseconds_are_all_named(capsys: pytest.CaptureFixture[str]) -> None:
    got = call(HELPER, "brief", SHORT)
    with capsys.disabled():
        short = sum(took < 5000 for took in got["took_us"])
        print(f"\n{len(got['took_us'])} processes took {statistics.median(got['took_us']) / 1000:.1f} ms each in the "
              f"median, {short} of them under 5 ms")
    assert got["lost"] == {}
    assert Counter(got["named"]) == Counter({f"/opt/brief/{number}": 1 for number in range(1, SHORT + 1)})
