"""Labs that stand: everything one can do in them, and how they end."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import runs
from lab.isolation import cgroup2_root
from tests.e2e.isolated import ROOT, needs_isolation
from tests.e2e.watched import processes

pytestmark = [needs_isolation, pytest.mark.e2e]


def labctl(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench.cli", *argv], cwd=ROOT, capture_output=True, text=True,
                          input=stdin, timeout=400, check=False)


def said(*argv: str, stdin: str = "") -> str:
    done = labctl(*argv, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    """The id of a three-tier lab with agent-nft in place."""
    made: dict[str, str] = json.loads(said("up", "three-tier", "--arm", "agent-nft", "--json"))
    yield made["id"]
    labctl("down", made["id"])


def test_it_is_listed(lab: str) -> None:
    (entry,) = [one for one in json.loads(said("ls", "--json")) if one["id"] == lab]
    assert (entry["kind"], entry["scenario"], entry["arm"]) == ("standing", "three-tier", "agent-nft")
    assert entry["hosts"] == 8
    assert lab in said("ls")


def test_a_command_runs_on_its_host_as_the_user_asked_for(lab: str) -> None:
    assert "10.10.3.2/24" in said("exec", "db", "--lab", lab, "--", "ip", "-4", "addr")
    assert labctl("exec", "db", "--lab", lab, "--", "sh", "-c", "exit 7").returncode == 7
    assert labctl("exec", "db", "--lab", lab, "--", "no-such-command").returncode == 127
    assert said("exec", "db", "--lab", lab, "--", "cat", stdin="through\n") == "through\n"
    if os.geteuid() == 0:
        uid = said("exec", "web-1", "--lab", lab, "--user", "www", "--", "id", "-u").strip()
        assert uid not in ("", "0")


def test_mistakes_are_one_line_with_what_there_is(lab: str) -> None:
    for argv, words in ((("exec", "nohost", "--lab", lab, "--", "ls"), "there is no host 'nohost'; there are: router"),
                        (("probe", "web-1", "db", "80/tcp", "--lab", lab), "db offers no 80/tcp, but: 6379/tcp"),
                        (("probe", "web-1", "--lab", lab), "write SOURCE"),
                        (("exec", "db", "--lab", lab, "--user", "eve", "--", "ls"), "there is no user 'eve'"),
                        (("shell", "--lab", "labctl-00000000"), "there is no lab labctl-00000000")):
        done = labctl(*argv)
        assert done.returncode == 2, done.stdout
        assert words in done.stderr and "Traceback" not in done.stderr


def test_probe_says_what_happened_and_whether_it_was_expected(lab: str) -> None:
    allowed = ("probe", "web-1/frontend", "api-1", "8080/tcp", "--lab", lab)
    denied = ("probe", "web-1/frontend", "db", "6379/tcp", "--lab", lab)
    assert "OPEN" in said(*allowed, "--expect", "allow")
    assert labctl(*allowed, "--expect", "deny").returncode == 1
    assert "nothing arrived at the target" in said(*denied, "--expect", "deny")
    assert labctl(*denied, "--expect", "allow").returncode == 1
    assert len(json.loads(said(*allowed, "--count", "3", "--json"))["observations"]) == 3


def test_explain_names_the_rule_of_the_policy_and_of_the_kernel(lab: str) -> None:
    allowed = json.loads(said("explain", "web-1/frontend", "api-1", "8080/tcp", "--lab", lab, "--json"))
    assert allowed["intended"] == {"allow": True, "rule": "shop calls api"}
    (mine,) = [one for one in allowed["arms"] if one["seen"]]
    assert mine["arm"] == "agent-nft" and mine["seen"]["observation"]["outcome"] == "OPEN"
    assert any("accept" in rule for rule in mine["seen"]["rules"])
    denied = json.loads(said("explain", "web-1/frontend", "db", "6379/tcp", "--every", "--lab", lab, "--json"))
    by = {one["arm"]: one for one in denied["arms"]}
    assert by["none"]["allow"] and by["none"]["seen"]["observation"]["outcome"] == "OPEN"
    for arm, host in (("agent-nft", "web-1"), ("chokepoint", "router")):
        assert not by[arm]["allow"] and by[arm]["seen"]["observation"]["outcome"] != "OPEN"
        assert any(rule.startswith(host) and "drop" in rule for rule in by[arm]["seen"]["rules"]), by[arm]
    # the arm that stood before is in force again
    assert labctl("probe", "web-1/frontend", "db", "6379/tcp", "--expect", "deny", "--lab", lab).returncode == 0


def test_explain_without_a_lab_says_what_the_arms_would_do() -> None:
    text = said("explain", "cam", "db", "6379/tcp", "--scenario", "three-tier")
    assert "no agent on cam" not in text and "nothing was tried" in text
    assert "it stays inside one segment" in said("explain", "web-1", "web-2", "80/tcp", "--scenario", "three-tier")


def test_a_capture_holds_the_packets_of_a_flow(lab: str, tmp_path: Path) -> None:
    file = tmp_path / "api.pcap"
    capture = subprocess.Popen([sys.executable, "-m", "bench.cli", "capture", "api-1", "--lab", lab, "-o", str(file),
                                "--count", "6", "--", "tcp port 8080"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert capture.stderr is not None
    for line in capture.stderr:  # it says when it listens
        if "listening" in line:
            break
        if "not installed" in line:
            pytest.skip(line.strip())
    said("probe", "web-1/frontend", "api-1", "8080/tcp", "--lab", lab)
    assert capture.wait(90) == 0
    content = file.read_bytes()
    magic, _major, _minor, _zone, _figures, _length, link = struct.unpack("<IHHiIII", content[:24])
    # of every interface: LINUX_SLL2; Ethernet where tcpdump cannot run, in a namespace with one user
    assert magic in (0xA1B2C3D4, 0xA1B23C4D) and link in (276, 1) and (os.geteuid() or link == 276)
    assert struct.pack(">H", 8080) in content


def test_the_prompt_is_mininets_own(lab: str) -> None:
    done = labctl("shell", "--lab", lab, stdin="nodes\nweb-1 ip -br addr\npy net['db'].IP()\nexit\n")
    assert done.returncode == 0
    told = done.stdout + done.stderr
    assert "mininet> " in told and "10.10.1.2/24" in told and "10.10.3.2" in told
    assert "api-1 api-2 cam db router" in told


def test_ctrl_c_at_the_prompt_ends_the_command_and_not_the_lab(lab: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "bench.cli", "shell", "--lab", lab])
    _await(terminal, b"mininet> ")
    os.write(terminal, b"web-1 sh -c 'echo be''gun; sleep 60'\n")
    _await(terminal, b"begun")
    os.write(terminal, b"\x03")
    _await(terminal, b"mininet> ")
    os.write(terminal, b"web-1 echo still he''re\n")
    _await(terminal, b"still here", b"mininet> ")  # what is typed before the prompt is the command's
    os.write(terminal, b"exit\n")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert lab in said("ls")


def _await(terminal: int, *words: bytes, timeout_s: float = 90) -> None:
    """Read until all of these were said, one after the other."""
    got, deadline = b"", time.monotonic() + timeout_s
    while not re.search(b".*".join(map(re.escape, words)), got, re.DOTALL):
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{words!r} did not come: {got!r}"
        got += os.read(terminal, 4096)


def test_two_labs_stand_and_each_goes_by_its_id(lab: str) -> None:
    other = json.loads(said("up", "three-tier", "--json"))["id"]
    done = labctl("probe", "web-1/frontend", "db", "6379/tcp")
    assert done.returncode == 2 and "several labs stand; say --lab ID" in done.stderr
    assert "OPEN" in said("probe", "web-1/frontend", "db", "6379/tcp", "--lab", other, "--expect", "allow")
    said("down", other)
    assert not (runs.registry() / other).exists()
    assert lab in said("ls")


def test_a_lab_whose_process_is_killed_leaves_nothing(lab: str) -> None:
    other = json.loads(said("up", "three-tier", "--arm", "chokepoint", "--json"))["id"]
    (entry,) = [one for one in runs.alive() if one.id == other]
    inside = {(pid, born) for pid, parent, born, _state in processes() if parent == entry.init}
    os.kill(entry.pid, signal.SIGKILL)
    root, deadline = cgroup2_root(), time.monotonic() + 60
    while left := [*([other] if entry.directory.exists() or (root and (root / other).exists()) else []),
                   *(pid for pid, _parent, born, state in processes() if (pid, born) in inside and state != "Z")]:
        assert time.monotonic() < deadline, left
    assert other not in said("ls")


def test_interrupted_while_it_stands_up_it_goes(tmp_path: Path) -> None:
    up = subprocess.Popen([sys.executable, "-m", "bench.cli", "up", "three-tier", "--arm", "agent-nft"], cwd=ROOT,
                          stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert up.stderr is not None
    next(line for line in up.stderr if "standing up" in line)
    mine = [one.id for one in runs.alive() if one.kind == "standing" and one.pid in _children(up.pid)]
    up.send_signal(signal.SIGINT)
    assert up.wait(60) == 130
    assert mine and not any((runs.registry() / one).exists() for one in mine)


def _children(parent: int) -> set[int]:
    return {pid for pid, above, _born, _state in processes() if above == parent}


def test_clean_shows_and_removes_what_is_dead_and_nothing_else(lab: str) -> None:
    dead = runs.registry() / "labctl-0dead000"
    dead.mkdir()
    (dead / "lock").touch()
    assert f"would remove directory {dead}" in said("clean", "--dry-run")
    assert dead.exists()
    assert f"removing directory {dead}" in said("clean")
    assert not dead.exists()
    assert lab in said("ls")
