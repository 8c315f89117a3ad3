"""However a run ends, the machine is as it was: interrupted in order, or killed at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.store import read
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
    """The machine's own lists, as far as a lab could show in them. Another run, in its own namespaces, does not."""
    def said(*argv: str) -> list[str]:
        return sorted(subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines())

    return {
        "links": sorted(p.name for p in Path("/sys/class/net").iterdir()), "netns": said("ip", "netns", "list"),
        "nft": said("/usr/sbin/nft", "list", "tables"),
        "mounts": sorted(Path("/proc/self/mounts").read_text().splitlines()),
        "run": sorted(p.name for p in Path("/run").iterdir()),
        "tmp": sorted(p.name for p in Path("/tmp").iterdir() if p.name.startswith("ansible")),
    }


class Watched:
    """A run, and all that belongs to it: its processes by (id, time of birth), and its cgroup."""

    def __init__(self, tmp_path: Path, blocks: int = 0) -> None:
        self.before = machine()
        self.directory = tmp_path
        self.process = start(tmp_path, blocks)
        self.born: set[tuple[int, int]] = set()

    def until(self, words: str) -> None:
        """Read progress up to the line that has `words`, and note who is alive then."""
        assert self.process.stderr is not None
        if not any(words in line for line in self.process.stderr):
            pytest.fail(f"the run ended before '{words}'")
        self.born = descendants(self.process.pid)
        assert len(self.born) > 1

    def saved(self) -> Path:
        (directory,) = (self.directory / "results" / "small").iterdir()
        return directory

    def left_over(self) -> list[str]:
        """What there still is of the run, in words; empty is what we want."""
        alive = {(pid, born): state for pid, _parent, born, state in processes()}
        run, root = json.loads((self.saved() / "environment.json").read_text())["run"], cgroup2_root()
        now = machine()
        return [
            *(f"process {pid}" for pid, born in self.born if alive.get((pid, born), "Z") != "Z"),
            *(f"process with {self.directory}: {pid}" for pid in mentioning(str(self.directory))),
            *([f"cgroup {run}"] if root and (root / run).exists() else []),
            *(f"{name}: {set(now[name]) ^ set(self.before[name])}" for name in now if now[name] != self.before[name])]

    def await_gone(self, timeout_s: float = 10) -> None:
        deadline = time.monotonic() + timeout_s
        while (left := self.left_over()) and time.monotonic() < deadline:
            os.sched_yield()
        assert left == []


def processes() -> Iterator[tuple[int, int, int, str]]:
    """Every process: its id, its parent's, the time of its birth and its state. See proc_pid_stat(5)."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                yield int(entry.name), int(fields[1]), int(fields[19]), fields[0]


def descendants(ancestor: int) -> set[tuple[int, int]]:
    everyone = list(processes())
    known = {ancestor}
    while more := {pid for pid, parent, _born, _state in everyone if parent in known} - known:
        known |= more
    return {(pid, born) for pid, _parent, born, _state in everyone if pid in known}


def mentioning(text: str) -> list[int]:
    """Living processes with `text` in their command line; those of the dead are empty."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if text in (entry / "cmdline").read_bytes().decode(errors="replace"):
                    found.append(int(entry.name))
    return found


def start(tmp_path: Path, blocks: int = 0) -> subprocess.Popen[str]:
    (tmp_path / "small.yaml").write_text(SCENARIO)
    return subprocess.Popen(
        [sys.executable, "-m", "bench.cli", "run", str(tmp_path / "small.yaml"), "--blocks", str(blocks), "--json",
         "--results", str(tmp_path / "results")], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_it_measured(tmp_path: Path, signum: int) -> None:
    run = Watched(tmp_path)
    run.until("chokepoint: matrix")
    run.process.send_signal(signum)
    out, err = run.process.communicate(timeout=60)
    assert run.process.returncode == 130, err
    assert "Traceback" not in err
    summary = json.loads(out)
    assert summary["interrupted"] is True
    assert summary["arms"]["none"]["flows"] > 0
    kept = list(read(run.saved() / "observations.jsonl.gz"))
    assert sum(r["arm"] == "none" and r["phase"] == "matrix" for r in kept) == summary["arms"]["none"]["flows"]
    assert json.loads((run.saved() / "summary.json").read_text()) == summary
    run.await_gone()


@pytest.mark.parametrize(("moment", "blocks", "measured"), [
    ("standing up", 0, set()), ("agent-nft: matrix", 0, {"none", "chokepoint"}),
    ("block 1", 50, {"none", "chokepoint", "agent-nft"})])
def test_the_whole_terminal_is_interrupted(tmp_path: Path, moment: str, blocks: int, measured: set[str]) -> None:
    """Ctrl-C reaches every process of the group, labctl's child twice: that is one interruption, not two."""
    run = Watched(tmp_path, blocks)
    run.until(moment)
    os.killpg(run.process.pid, signal.SIGINT)
    out, err = run.process.communicate(timeout=60)
    assert run.process.returncode == 130 and "Traceback" not in err, err
    summary = json.loads(out)
    assert summary["interrupted"] is True and set(summary["arms"]) == measured
    run.await_gone()


@pytest.mark.parametrize("moment", ["standing up", "none: matrix", "chokepoint: telemetry", "agent-nft: matrix"])
def test_a_killed_run_leaves_nothing(tmp_path: Path, moment: str) -> None:
    run = Watched(tmp_path)
    run.until(moment)
    run.process.kill()
    run.process.communicate(timeout=30)
    run.await_gone()
    for raw in run.saved().glob("*.jsonl.gz"):
        assert all(record["f"] == 1 for record in read(raw))


def test_two_runs_at_once_do_not_meet(tmp_path: Path) -> None:
    runs = []
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        runs.append(Watched(tmp_path / name))
    found = [json.loads(run.process.communicate(timeout=120)[0]) for run in runs]
    assert [run.process.returncode for run in runs] == [0, 0]
    names = ("flows", "leaks", "breaks", "gaps", "defects", "inconclusive")
    counts = [{arm: [one[name] for name in names] for arm, one in summary["arms"].items()} for summary in found]
    assert counts[0] == counts[1] and counts[0]["none"][1] > 0
    for run in runs:
        run.await_gone()
