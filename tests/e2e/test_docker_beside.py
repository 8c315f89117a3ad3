"""Arms that enforce beside containers: at the machine's end of their links, and once on the machine for all of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.report.summary import from_json
from lab import features
from lab.backends import docker_left
from lab.model import Feature
from tests.e2e.isolated import ROOT, needs_isolation, needs_root
from tests.e2e.test_docker import everything, labctl
from tests.e2e.test_docker_agent_ebpf import volumes

_NEEDED = ("bpf", "btf", "cgroup2", "cgroup-bpf", "tc-bpf", "host-tc-bpf", "libbpf", "clang")
LACKS = features.missing(tuple(Feature(name, "the arms") for name in _NEEDED))
pytestmark = [needs_root, needs_isolation, pytest.mark.e2e, pytest.mark.skipif(bool(LACKS), reason=str(LACKS))]
_RUNNING = ("sh", "-c", "cat /proc/[0-9]*/cmdline")


def check(scenario: str, results: Path) -> None:
    """One agent for all containers enforces and tells what one in each does."""
    golden = yaml.safe_load((ROOT / f"tests/golden/{scenario}-gaps.yaml").read_text())["agent-ebpf"]
    done = labctl("run", scenario, "--backend", "docker", "--arms", "agent-ebpf-node", "--blocks", "0", "--json",
                  "--results", str(results))
    assert done.returncode == 0, done.stderr
    found = from_json(done.stdout).arms["agent-ebpf-node"]
    assert (found.unsupported, found.defects, found.inconclusive, found.breaks) == (None, 0, 0, 0)
    assert found.leaks == found.gaps == golden["total"]
    seen = found.visibility
    assert seen["process"].recall == 1 or (scenario == "three-tier" and seen["process"].recall > 0.9)
    spent = found.footprint
    assert spent.host_cpu_s == 0 and spent.off_host_cpu_s > 0 and spent.off_host_rss_bytes > 1e6


def test_same_host_has_the_gaps_that_it_has_on_mininet(engine: str, tmp_path: Path) -> None:
    before = everything(engine), volumes(engine)
    check("same-host", tmp_path)
    assert (everything(engine), volumes(engine)) == before


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["process-level", "three-tier"])
def test_others_have_the_gaps_that_they_have_on_mininet_too(engine: str, tmp_path: Path, scenario: str) -> None:
    check(scenario, tmp_path)


@pytest.mark.slow
def test_the_switch_has_on_three_tier_the_gaps_that_it_has_on_mininet(engine: str, tmp_path: Path) -> None:
    golden = yaml.safe_load((ROOT / "tests/golden/three-tier-gaps.yaml").read_text())
    done = labctl("run", "three-tier", "--backend", "docker", "--arms", "virtual-switch,unified", "--blocks", "0",
                  "--json", "--results", str(tmp_path))
    found = from_json(done.stdout).arms
    for name in ("virtual-switch", "unified"):
        arm = found[name]
        assert (arm.leaks, arm.defects, arm.inconclusive, arm.breaks) == (golden[name]["total"], 0, 0, 0), name


class Standing:
    """A lab on containers that stands with an arm, and its engine."""

    def __init__(self, engine: str, scenario: str, arm: str) -> None:
        import docker

        stood = labctl("up", scenario, "--backend", "docker", "--arm", arm, "--json", timeout_s=400)
        assert stood.returncode == 0, stood.stderr
        self.id = json.loads(stood.stdout)["id"]
        self.client = docker.DockerClient(base_url=f"unix://{engine}")

    def probes(self, source: str, target: str, service: str, expect: str) -> bool:
        return labctl("probe", source, target, service, "--lab", self.id, "--expect", expect,
                      timeout_s=300).returncode == 0

    def container(self, name: str) -> Any:
        return self.client.containers.get(f"{self.id}{name}")

    def inside(self, name: str, *words: str) -> str:
        done = self.container(name).exec_run(list(words))
        assert done.exit_code == 0, done.output
        return str(done.output.decode())

    def down(self) -> None:
        self.client.close()
        assert labctl("down", self.id, timeout_s=300).returncode == 0


@pytest.fixture
def switched(engine: str) -> Iterator[Standing]:
    before = everything(engine), volumes(engine)
    lab = Standing(engine, "same-host", "virtual-switch")
    try:
        yield lab
    finally:
        lab.down()
    assert (everything(engine), volumes(engine)) == before


def test_the_switch_stands_outside_of_the_containers_and_is_what_refuses(switched: Standing) -> None:
    """Nothing of it is in a container; with its programs gone what it refused passes."""
    lab, denied = switched, ("user/browser", "app", "6379/tcp")
    assert lab.probes(*denied, "deny") and lab.probes("user/browser", "app", "80/tcp", "allow")
    for host in ("app", "user"):
        assert "switch" not in lab.inside(f"-{host}", *_RUNNING)
    assert "switch.pyz" in lab.inside(".switch", *_RUNNING)
    lab.inside(".switch", "sh", "-c", "rm /run/switch/bpf/in_* /run/switch/bpf/out_*")
    assert lab.probes(*denied, "allow"), "nothing guards the ports any more, so the refusal was theirs"


@pytest.fixture
def watched(engine: str) -> Iterator[Standing]:
    before = everything(engine), volumes(engine)
    lab = Standing(engine, "same-host", "agent-ebpf-node")
    try:
        yield lab
    finally:
        lab.down()
    assert (everything(engine), volumes(engine)) == before


def test_one_agent_on_the_machine_serves_every_container_and_outlives_being_killed(watched: Standing) -> None:
    lab = watched
    said = json.loads(labctl("agent", "status", "--lab", lab.id, "--json", timeout_s=300).stdout)["hosts"]
    assert {name: one["agent"]["hosts"] for name, one in said.items()} == {
        "app": ["app", "user"], "user": ["app", "user"]}
    assert "agent.pyz" not in lab.inside("-app", "sh", "-c", "ls -R /run/host /opt")
    denied = ("app/report", "app", "6379/tcp")
    lab.inside(".node", "sh", "-c", "kill -KILL $(cat /run/host/agent-ebpf-node.own/lock)")
    assert lab.probes(*denied, "deny") and lab.probes("app/web", "app", "6379/tcp", "allow")
    lab.inside(".node", "sh", "-c", "rm /run/lab/bpf/agent-ebpf/link_*")
    assert lab.probes(*denied, "allow"), "nothing enforces any more, so the refusal was the programs'"


@pytest.mark.parametrize("arm", ["virtual-switch", "agent-ebpf-node"])
def test_killed_amid_it_all_nothing_is_left_beside_the_containers(engine: str, tmp_path: Path, arm: str) -> None:
    before = everything(engine), volumes(engine)
    process = subprocess.Popen([sys.executable, "-m", "bench.cli", "run", "same-host", "--backend", "docker", "--arms",
                                arm, "--results", str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not _serves(engine):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)  # the engine tells nobody before it is asked
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert labctl("clean").returncode == 0
    assert (everything(engine), volumes(engine)) == before


def _serves(engine: str) -> bool:
    """Whether the arm's daemon runs beside the containers."""
    for one in json.loads(docker_left.ask(engine, "GET", "/containers/json")[1]):
        if one["Names"][0].endswith((".switch", ".node")):
            listed = docker_left.ask(engine, "GET", f"/containers/{one['Id']}/top?ps_args=-eo%20pid,args%20-ww")
            return listed[0] == 200 and b"pyz" in listed[1]
    return False
