"""The agent in the kernel inside containers: one in each, with what it takes, and gone with them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bench.report.summary import from_json
from lab import features
from lab.backends import docker_left, docker_specs
from lab.backends.docker_specs import CAPABILITIES
from lab.model import Feature
from tests.e2e.isolated import ROOT, needs_isolation, needs_root
from tests.e2e.test_docker import everything, labctl

_NEEDED = ("bpf", "btf", "cgroup2", "cgroup-bpf", "host-tc-bpf", "libbpf", "clang")
LACKS = features.missing(tuple(Feature(name, "the agent") for name in _NEEDED))
pytestmark = [needs_root, needs_isolation, pytest.mark.e2e, pytest.mark.skipif(bool(LACKS), reason=str(LACKS))]


def volumes(engine: str) -> set[str]:
    """What keeps the agents' programs in the kernel: a bpf file system for each."""
    return {one["Name"] for one in json.loads(docker_left.ask(engine, "GET", "/volumes")[1])["Volumes"] or ()}


def test_each_container_has_an_agent_of_its_own_that_outlives_being_killed(engine: str) -> None:
    before = everything(engine), volumes(engine)
    stood = labctl("up", "same-host", "--backend", "docker", "--arm", "agent-ebpf", "--json", timeout_s=400)
    assert stood.returncode == 0, stood.stderr
    lab = json.loads(stood.stdout)["id"]

    def answers(to: str, source: str) -> bool:
        asked = labctl("probe", source, "app", "6379/tcp", "--lab", lab, "--expect", to, timeout_s=300)
        return asked.returncode == 0

    def on_app(line: str) -> str:
        done = labctl("exec", "app", "--lab", lab, "--", "sh", "-c", line, timeout_s=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        said = json.loads(labctl("agent", "status", "--lab", lab, "--json", timeout_s=300).stdout)["hosts"]
        assert {name: one["agent"]["hosts"] for name, one in said.items()} == {"app": ["app"], "user": ["user"]}
        held = int(on_app("sed -n 's/CapBnd:\\t//p' /proc/self/status"), 16)
        least = docker_specs.capabilities(_NEEDED)
        most = least - {"BPF", "PERFMON"} | {"SYS_ADMIN"}
        assert held in {sum(1 << CAPABILITIES[name] for name in some) for some in (least, most)}
        on_app("kill -KILL $(cat /run/host/agent-ebpf/own/lock)")
        assert answers("deny", "app/report") and answers("allow", "app/web")
        on_app("rm /run/lab/bpf/agent-ebpf/link_*")
        assert answers("allow", "app/report"), "nothing enforces any more, so the refusal was the programs'"
    finally:
        assert labctl("down", lab, timeout_s=300).returncode == 0
    assert (everything(engine), volumes(engine)) == before


def test_killed_amid_it_all_nothing_of_the_agents_is_left(engine: str, tmp_path: Path) -> None:
    before = everything(engine), volumes(engine)
    process = subprocess.Popen([sys.executable, "-m", "bench.cli", "run", "same-host", "--backend", "docker", "--arms",
                                "agent-ebpf", "--results", str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(volumes(engine)) < len(before[1]) + 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)  # the engine tells nobody before it is asked
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert labctl("clean").returncode == 0
    assert (everything(engine), volumes(engine)) == before


@pytest.mark.slow
def test_three_tier_has_the_gaps_that_it_has_on_mininet(engine: str, tmp_path: Path) -> None:
    golden = yaml.safe_load((ROOT / "tests/golden/three-tier-gaps.yaml").read_text())["agent-ebpf"]
    done = labctl("run", "three-tier", "--backend", "docker", "--arms", "agent-ebpf", "--blocks", "0", "--json",
                  "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = from_json(done.stdout).arms["agent-ebpf"]
    assert (found.unsupported, found.defects, found.inconclusive, found.breaks) == (None, 0, 0, 0)
    assert found.leaks == found.gaps == golden["total"]
