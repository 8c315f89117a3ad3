"""The Docker backend on an engine of the tests' own: the answers of Mininet, and nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.report.summary import Summary, from_json
from lab import runs
from lab.backends import docker_left
from tests.e2e.isolated import ROOT, needs_isolation, needs_root
from tests.e2e.standup import scenario_text

pytestmark = [needs_root, needs_isolation, pytest.mark.e2e]
ARMS = yaml.safe_load((ROOT / "scenarios/three-tier.yaml").read_text())["arms"]
GOLDEN = {arm: gaps for arm, gaps in yaml.safe_load((ROOT / "tests/golden/three-tier-gaps.yaml").read_text()).items()
          if arm in ARMS}  # the others have tests of their own


def labctl(*words: str, timeout_s: float = 500) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench.cli", *words], cwd=ROOT, capture_output=True, text=True,
                          timeout=timeout_s, check=False)


def everything(engine: str) -> dict[str, set[str]]:
    """Ids of all that the engine holds, by kind."""
    found = {}
    for kind, path in (("container", "/containers/json?all=1"), ("network", "/networks"), ("image", "/images/json")):
        status, body = docker_left.ask(engine, "GET", path)
        assert status == 200
        found[kind] = {one["Id"] for one in json.loads(body)}
    return found


@pytest.fixture(scope="module")
def ran(engine: str, own_objects: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Summary]:
    results = tmp_path_factory.mktemp("results")
    before = everything(engine)
    done = labctl("run", "three-tier", "--backend", "docker", "--quick", "--json", "--results", str(results))
    assert done.stdout, done.stderr
    assert everything(engine) == before
    return done, from_json(done.stdout)


def test_three_tier_ends_well_on_containers(ran) -> None:  # type: ignore[no-untyped-def]
    done, summary = ran
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or (done.returncode == 4 and summary.invalid), done.stderr
    assert summary.environment["backend"] == "docker"


@pytest.mark.parametrize("arm", sorted(GOLDEN))
def test_the_gaps_are_those_derived_by_hand(ran, arm: str) -> None:  # type: ignore[no-untyped-def]
    found = ran[1].arms[arm]
    assert (found.defects, found.inconclusive, found.breaks) == (0, 0, 0), found.findings
    assert found.gaps == found.leaks == GOLDEN[arm]["total"]
    wanted: Counter[str] = Counter()
    for one in GOLDEN[arm]["classes"]:
        wanted[one["why"]] += one["flows"]
    got: Counter[str] = Counter()
    for gap in found.gap_classes:
        (why,) = (why for why in wanted if why in gap.reason)
        got[why] += gap.flows
    assert got == wanted


@pytest.mark.parametrize("name", ["process-level", "same-host"])
def test_other_scenarios_have_the_gaps_that_they_have_on_mininet(engine: str, tmp_path: Path, name: str) -> None:
    """Scripts behind interpreters, contents and users; and what stays on one host."""
    golden = yaml.safe_load((ROOT / f"tests/golden/{name}-gaps.yaml").read_text())
    done = labctl("run", name, "--backend", "docker", "--blocks", "0", "--json", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = from_json(done.stdout).arms
    here = {arm: got for arm, got in found.items() if arm in golden and not got.unsupported}
    assert {"agent-nft", "chokepoint"} <= set(here)
    assert {(got.defects, got.inconclusive, got.breaks) for got in here.values()} == {(0, 0, 0)}
    assert {arm: got.leaks for arm, got in here.items()} == {arm: golden[arm]["total"] for arm in here}
    assert all("use --backend mininet" in got.unsupported for got in found.values() if got.unsupported)


def test_the_agent_in_a_container_sees_who_it_was(ran) -> None:  # type: ignore[no-untyped-def]
    """With the few capabilities that it gets: flows, users, and the process where the socket lives long enough."""
    seen = ran[1].arms["agent-nft"].visibility
    assert seen["flow"].recall > 0.9 and seen["user"].recall > 0.8
    assert seen["process"].recall > 0.2


def test_fifty_containers_are_measured_and_gone(engine: str, own_objects: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "fifty.yaml"
    file.write_text(scenario_text(50, 2))
    before = everything(engine)
    done = labctl("run", str(file), "--backend", "docker", "--arms", "chokepoint", "--blocks", "0", "--json",
                  "--results", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    found = from_json(done.stdout).arms
    assert found["none"].inconclusive < found["none"].flows / 1000  # a busy machine times out now and then
    assert found["chokepoint"].defects == found["chokepoint"].breaks == 0
    assert found["chokepoint"].allowed > 50 * 49
    assert everything(engine) == before


def test_killed_it_leaves_nothing_and_takes_nothing_of_others(engine: str, own_objects: dict[str, str],
                                                              tmp_path: Path) -> None:
    before = everything(engine)
    process = subprocess.Popen([sys.executable, "-m", "bench.cli", "run", "three-tier", "--backend", "docker",
                                "--results", str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(everything(engine)["container"]) < len(before["container"]) + 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert labctl("clean").returncode == 0
    assert everything(engine) == before


def test_what_a_dead_run_left_goes_by_its_id_alone(engine: str, own_objects: dict[str, str], tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its reaper, as after a power cut: only the registry knows, and the next sweep asks the engine."""
    import docker

    monkeypatch.setattr(runs, "registry", lambda: tmp_path / "registry")  # in the real one others may sweep
    before = everything(engine)
    client = docker.DockerClient(base_url=f"unix://{engine}")
    for run_id in ("labctl-dead0001", "labctl-dead0002"):  # the second is nobody's: no directory speaks of it
        labels = {docker_left.LABEL: run_id}
        client.networks.create(run_id, labels=labels)
        client.containers.create("mine:1", ["/usr/bin/true"], name=run_id, network=run_id, labels=labels)
    directory = tmp_path / "registry" / "labctl-dead0001"
    directory.mkdir(parents=True)
    (directory / docker_left.MARK).write_text(engine)
    shown = ["container labctl-dead0001", "network labctl-dead0001", f"directory {directory}"]
    assert runs.leftovers(None) == shown and runs.sweep(None) == shown
    assert not directory.exists()
    assert {c.name for c in client.containers.list(all=True)} == {"mine", "labctl-dead0002"}
    docker_left.remove(engine, "labctl-dead0002")
    assert everything(engine) == before
    client.close()


def test_no_engine_is_one_line_and_status_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (f"unix://{tmp_path}/docker.sock", "tcp://127.0.0.1:2375"):
        monkeypatch.setenv("DOCKER_HOST", address)
        for command in ("run", "up"):
            done = labctl(command, "three-tier", "--backend", "docker")
            assert done.returncode == 3 and not done.stdout
            assert done.stderr.startswith("labctl: docker: ") and done.stderr.count("\n") == 1
    assert not os.listdir(tmp_path)


def test_a_lab_left_standing_on_containers_can_be_looked_into(engine: str, own_objects: dict[str, str]) -> None:
    before = everything(engine)
    stood = labctl("up", "three-tier", "--backend", "docker", "--arm", "chokepoint", "--json", timeout_s=400)
    assert stood.returncode == 0, stood.stderr
    lab = json.loads(stood.stdout)["id"]
    try:
        done = labctl("exec", "db", "--lab", lab, "--user", "store", "--", "id", "-u", timeout_s=300)
        assert done.returncode == 0 and int(done.stdout) >= 20000, done.stderr
        assert labctl("exec", "db", "--lab", lab, "--", "nosuch", timeout_s=300).returncode == 127
        done = labctl("probe", "user-1/browser", "web-1", "80/tcp", "--lab", lab, "--expect", "allow", timeout_s=300)
        assert done.returncode == 0, done.stderr
    finally:
        assert labctl("down", lab, timeout_s=300).returncode == 0
    assert everything(engine) == before
