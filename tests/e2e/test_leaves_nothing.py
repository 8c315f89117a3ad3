"""However a run ends, the machine is as it was: interrupted in order, or killed at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.isolation import cgroup2_root
from tests.e2e.isolated import ROOT, needs_root

pytestmark = [needs_root, pytest.mark.e2e]

SCENARIO = """\
version: 1
name: small
topology:
  segments:
    a: {v4: 10.31.0.0/24, v6: 'fd31:0::/64'}
    b: {v4: 10.31.1.0/24, v6: 'fd31:1::/64'}
  hosts:
    one: {segment: a, labels: {role: client}, runs: [client]}
    two: {segment: b, labels: {role: server}, runs: [server]}
    three: {segment: b, labels: {role: other}, runs: [client]}
processes:
  client: {exe: /opt/client}
  server: {exe: /opt/server, listens: [7000/tcp]}
policy:
  default: deny
  rules:
    - {name: ask, allow: {from: {role: client}, to: {role: server}, service: 7000/tcp}}
arms: [none, chokepoint, agent-nft]
"""


def machine() -> dict[str, list[str]]:
    """The machine's own lists, as far as a lab could show in them."""
    def said(*argv: str) -> list[str]:
        return sorted(subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines())

    root = cgroup2_root()
    return {
        "links": said("ip", "-o", "link", "show"), "nft": said("/usr/sbin/nft", "list", "tables"),
        "namespaces": said("ip", "netns", "list"), "mounts": sorted(Path("/proc/self/mounts").read_text().splitlines()),
        "cgroups": sorted(p.name for p in root.iterdir() if p.name.startswith("labctl-")) if root else [],
        "processes": [line for line in said("ps", "-eo", "args") if "labhost" in line or "agent.pyz" in line],
        "run": sorted(p.name for p in Path("/run").iterdir()),
        "tmp": sorted(p.name for p in Path("/tmp").iterdir() if "labctl" in p.name or "ansible" in p.name),
    }


def await_equal(before: dict[str, list[str]], what: Callable[[], dict[str, list[str]]] = machine) -> None:
    deadline = time.monotonic() + 10
    while (now := what()) != before and time.monotonic() < deadline:
        os.sched_yield()
    assert now == before


def start(tmp_path: Path, blocks: int = 0) -> subprocess.Popen[str]:
    (tmp_path / "small.yaml").write_text(SCENARIO)
    return subprocess.Popen(
        [sys.executable, "-m", "bench.cli", "run", str(tmp_path / "small.yaml"), "--blocks", str(blocks), "--json",
         "--results", str(tmp_path / "results")], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(run: subprocess.Popen[str], words: str) -> None:
    """Read progress up to the line that has `words`."""
    assert run.stderr is not None
    for line in run.stderr:
        if words in line:
            return
    pytest.fail(f"the run ended before '{words}'")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_it_measured(tmp_path: Path, signum: int) -> None:
    before = machine()
    run = start(tmp_path)
    until(run, "chokepoint: matrix")
    run.send_signal(signum)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    summary = json.loads(out)
    assert summary["interrupted"] is True
    assert summary["arms"]["none"]["flows"] > 0
    assert "Traceback" not in err
    (saved,) = (tmp_path / "results" / "small").iterdir()
    assert (saved / "observations.jsonl.gz").stat().st_size > 0
    assert json.loads((saved / "summary.json").read_text()) == summary
    await_equal(before)


@pytest.mark.parametrize("moment", ["standing up", "none: matrix", "chokepoint: telemetry", "agent-nft: matrix"])
def test_a_killed_run_leaves_nothing(tmp_path: Path, moment: str) -> None:
    before = machine()
    run = start(tmp_path)
    until(run, moment)
    run.kill()
    run.communicate(timeout=30)
    await_equal(before)


def test_two_runs_at_once_do_not_meet(tmp_path: Path) -> None:
    before = machine()
    runs = []
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        runs.append(start(tmp_path / name))
    found = [json.loads(run.communicate(timeout=120)[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    names = ("flows", "leaks", "breaks", "gaps", "defects", "inconclusive")
    counts = [{arm: [one[name] for name in names] for arm, one in summary["arms"].items()} for summary in found]
    assert counts[0] == counts[1]
    await_equal(before)
