"""The registry of runs: who lives, who is dead, and what of the dead may be taken away."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import runs, users
from lab.isolation import cgroup2_root
from lab.model import Topology
from lab.runs import Entry, RegistryError

HOLD = """
import os, sys, time
from pathlib import Path
from lab import runs
runs.registry.cache_clear(); runs.registry = lambda: Path(sys.argv[1])
runs.enroll(runs.Entry(sys.argv[2], "standing", "x", os.getpid(), time.time()))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runs, "registry", lambda: tmp_path / "registry")
    return tmp_path / "registry"


@pytest.fixture
def living(registry: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(registry), "labctl-00000001"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_run_lives_as_long_as_its_process(registry: Path, living: subprocess.Popen[str]) -> None:
    assert [entry.id for entry in runs.alive()] == ["labctl-00000001"]
    assert runs.alive()[0].pid == living.pid
    assert runs.dead() == [] and runs.sweep(None) == []
    living.kill()
    living.wait()
    assert runs.alive() == [] and runs.dead() == ["labctl-00000001"]
    assert runs.sweep(None) == [f"directory {registry / 'labctl-00000001'}"]
    assert not registry.exists()


def test_our_own_run_is_alive_to_us_and_stays_locked(registry: Path) -> None:
    runs.enroll(Entry("labctl-00000002", "run", "x", os.getpid(), time.time()))
    assert [entry.id for entry in runs.alive()] == ["labctl-00000002"]
    asked = subprocess.run([sys.executable, "-c", "import sys; from pathlib import Path; from lab import runs\n"
                            "runs.registry = lambda: Path(sys.argv[1])\nprint(runs.dead())", str(registry)],
                           capture_output=True, text=True, check=True)
    assert asked.stdout == "[]\n"  # looking at it ourselves has not given up the lock
    runs.forget("labctl-00000002")


def test_what_does_not_bear_a_runs_id_is_never_touched(registry: Path) -> None:
    for name in ("labctl-00000003x", "other", "labctl-0000000"):
        (registry / name).mkdir(parents=True)
        (registry / name / "lock").touch()
    assert runs.dead() == [] and runs.sweep(None) == []
    assert len(list(registry.iterdir())) == 3


def test_a_registry_of_somebody_else_is_refused(registry: Path) -> None:
    registry.parent.mkdir(exist_ok=True)
    registry.symlink_to(registry.parent)
    with pytest.raises(RegistryError, match="belongs to somebody else"):
        runs.enroll(Entry("labctl-00000004", "run", "x", 1, 0.0))


@pytest.mark.skipif(os.geteuid() != 0 or cgroup2_root() is None, reason="needs root and a writable cgroup v2")
def test_only_a_cgroup_whose_marked_process_is_gone_is_swept(registry: Path) -> None:
    root = cgroup2_root()
    assert root
    mine, unmarked, dead = (root / f"labctl-0000000{letter}" for letter in "abc")
    marker = "import sys; from pathlib import Path; from lab.runs import mark_cgroup; mark_cgroup(Path(sys.argv[1]))"
    try:
        for cgroup in (mine, unmarked, dead):
            cgroup.mkdir()
        runs.mark_cgroup(mine)
        subprocess.run([sys.executable, "-c", marker, str(dead)], check=True)
        found = runs.dead_cgroups(root)
        assert dead in found and mine not in found and unmarked not in found
        assert f"cgroup {dead} and every process in it" in runs.leftovers(root)
        runs.remove_cgroup(dead)
        assert not dead.exists()
    finally:
        for cgroup in (mine, unmarked, dead):
            if cgroup.exists():
                cgroup.rmdir()


def test_one_user_stands_for_all_and_names_stay(three_tier: Topology) -> None:
    one = users.one_user(three_tier)
    assert set(one.users.values()) == {0} and "nobody" in one.users
    assert {p.uid for p in one.processes.values()} == {0}
    assert {n: p.user for n, p in one.processes.items()} == {n: p.user for n, p in three_tier.processes.items()}


@pytest.fixture
def three_tier() -> Topology:
    from lab.scenario import load

    file = Path(__file__).parents[2] / "scenarios/three-tier.yaml"
    return load(file, arms=("none", "agent-nft", "chokepoint")).topology


@pytest.mark.parametrize(("text", "first"), [
    ("54321:100000:65536\n", 100000), ("54321:100000:10\n54321:200000:65536\n", 200000), ("other:100000:65536\n", None),
    ("garbage\n54321:5\n", None), ("", None)])
def test_subordinate_ids_are_read_as_debian_writes_them(tmp_path: Path, text: str, first: int | None) -> None:
    file = tmp_path / "subuid"
    file.write_text(text)
    assert users._first_range(file, 54321) == first
