"""A feature that is not here is said to lack what it lacks, with what mends it; one line each."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from lab import bpf_probe, features, forked, packages, runs
from lab.backends import docker_specs
from lab.features import AS_ROOT, CHECKS, Lack, missing, probe
from lab.isolation import cgroup2_root
from lab.model import Feature
from lab.packages import TOOLS, apt_line, missing_packages
from tests.e2e.isolated import call, needs_root


def tool(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory where tools are found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(features, "tool_env", lambda: {"PATH": str(tmp_path)})
    return tmp_path


@pytest.mark.parametrize(("name", "package"), [("nftables", "nftables"), ("nflog", "nftables"), ("netem", "iproute2"),
                                               ("tc-bpf", "iproute2"), ("iperf3", "iperf3")])
def test_a_missing_tool_is_mended_by_its_package(bin_dir: Path, name: str, package: str) -> None:
    lack = probe(name)
    assert lack is not None and "is not installed" in lack.problem and lack.remedy == apt_line([package])


def test_a_refusal_is_told_in_the_tools_own_words(bin_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(bin_dir / "nft", "echo '/dev/stdin:1:1-5: Error: Could not process rule: No such file' >&2; exit 1")
    assert probe("nftables") == Lack("nft was refused tables: Could not process rule: No such file",
                                     "nothing but another kernel: this one has no tables")
    tool(bin_dir / "nft", "echo 'Error: Operation not permitted' >&2; exit 1")
    monkeypatch.setattr(features, "_is_root", lambda: False)
    assert probe("nftables").remedy == AS_ROOT  # type: ignore[union-attr]
    monkeypatch.setattr(features, "_is_root", lambda: True)
    assert "forbids" in probe("nftables").remedy  # type: ignore[union-attr]


def test_a_tool_that_does_as_told_is_a_feature(bin_dir: Path) -> None:
    tool(bin_dir / "nft", "exit 0")
    assert probe("nftables") is None


def test_what_an_arm_lacks_is_one_line_with_its_reason_and_remedy(bin_dir: Path) -> None:
    said = missing((Feature("iperf3", "bulk"), Feature("nftables", "rules"), Feature("magic", "wonder")))
    assert said is not None and "\n" not in said
    assert f"iperf3: iperf3 is not installed (bulk); {apt_line(['iperf3'])}" in said
    assert "nftables: nft is not installed (rules)" in said
    assert "magic: labctl does not know how to look for it (wonder)" in said
    assert missing(()) is None


def test_bpf_that_is_refused_is_a_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_command: int, _attributes: bytes) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(bpf_probe, "_bpf", refused)
    monkeypatch.setattr(features, "_is_root", lambda: False)
    assert probe("bpf") == Lack("bpf(2) is refused (Operation not permitted)", AS_ROOT)


def test_no_btf_is_a_lack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(features, "_BTF", tmp_path / "vmlinux")
    assert probe("btf") is not None
    (tmp_path / "vmlinux").write_bytes(b"not BTF")
    assert probe("btf") is not None
    (tmp_path / "vmlinux").write_bytes(b"\x9f\xeb\x01")
    assert probe("btf") is None


def test_a_docker_socket_that_nobody_serves_is_no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = str(tmp_path / "docker.sock")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    assert probe("docker") is not None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        if os.fork() == 0:
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
            os._exit(0)
        assert probe("docker") is None
        os.wait()


def test_every_feature_that_an_arm_needs_can_be_looked_for() -> None:
    from bench import registry

    for name in registry.names():
        needs = [need for need in registry.load(name).needs() if not docker_specs.only_here(need)]  # a backend has it
        assert {need.name for need in needs} <= set(CHECKS), name


def test_a_missing_package_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_PATH", "/nowhere")
    assert set(missing_packages()) >= {tool.package for tool in TOOLS} - {"gcc"}
    assert len(missing_packages()) == len(set(missing_packages()))
    monkeypatch.undo()
    assert "nftables" not in missing_packages()


def inside(_me: object, _argument: object) -> list[object]:
    """Every probe twice: what one leaves behind, the other would trip over. Then what is left."""
    first, second = ({n: bool(c.probe()) for n, c in CHECKS.items() if not c.outside} for _ in range(2))
    left = [features.subprocess.run(argv, capture_output=True, text=True, check=True, env=features.tool_env()).stdout
            for argv in (["tc", "qdisc", "show", "dev", "lo"], ["nft", "list", "tables"])]
    return [first, second, left]


@needs_root
@pytest.mark.e2e
def test_probes_leave_nothing_behind() -> None:
    first, second, (queues, tables) = call("tests.unit.test_features", "inside")
    assert first == second
    assert "netem" not in queues and "clsact" not in queues and "labctl_probe" not in tables


@needs_root
def test_killed_while_it_tries_a_cgroup_it_leaves_one_that_is_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    root = cgroup2_root()
    if root is None:
        pytest.skip("no writable cgroup v2 here")
    marks, mark = os.pipe()

    def die(cgroup: Path) -> None:
        os.write(mark, bytes(cgroup))
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(bpf_probe, "attach_to_cgroup", die)
    child = forked.child(lambda: int(features._cgroup_bpf()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = Path(os.fsdecode(os.read(marks, 4096)))
    if left.exists():  # else a command of labctl's beside us swept it already
        assert left in runs.dead_cgroups(root)
        runs.remove_cgroup(left)
        assert not left.exists()
