"""A run that is watched from outside: whose processes, namespaces, cgroup and files there are, and what stays."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import runs
from lab.isolation import cgroup2_root
from tests.e2e.isolated import ROOT

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
  server: {exe: /opt/server, listens: [7000/tcp], vulnerable: true}
policy:
  default: deny
  rules:
    - {name: ask, allow: {from: {role: client}, to: {role: server}, service: 7000/tcp}}
attack: {foothold: {host: one, process: client}, goal: {role: server}}
arms: [none, chokepoint, agent-nft]
"""


def machine() -> dict[str, list[str]]:
    """The machine's own lists, whole. Another run, in its own namespaces, shows in a few: see `compared`."""
    def said(*argv: str) -> list[str]:
        return sorted(subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines())

    root = cgroup2_root()
    return {
        "links": sorted(p.name for p in Path("/sys/class/net").iterdir()), "netns": said("ip", "netns", "list"),
        "nft": said("/usr/sbin/nft", "list", "ruleset"),
        "mounts": sorted(Path("/proc/self/mounts").read_text().splitlines()),
        "cgroups": sorted(path for path, _, _ in os.walk(root)) if root else [],  # some go while we look
        "bpf": [*bpf_ids(PROGRAMS), *bpf_ids(LINKS)],
        "docker": said("docker", "ps", "-aq") + said("docker", "network", "ls", "-q") if shutil.which("docker") else [],
        "namespaces": namespaces(), "processes": [str(pid) for pid, _parent, _born, state in processes()
                                                  if not kernel_thread(pid) and state != "Z"],
        "run": sorted(p.name for p in Path("/run").iterdir()),
        "shm": sorted(p.name for p in Path("/dev/shm").iterdir()),
        "tmp": sorted(p.name for p in Path("/tmp").iterdir()),
    }


# What others on the machine may change while we look. On a machine of its own (LABCTL_ALONE=1) nobody does.
SHARED = ("cgroups", "bpf", "namespaces", "processes", "tmp", "run", "shm", "docker")
PROGRAMS, LINKS = 11, 31  # BPF_PROG_GET_NEXT_ID, BPF_LINK_GET_NEXT_ID of bpf(2)


def alone() -> bool:
    """Whether the whole lists can be compared: said by the environment, since no list tells who is a guest."""
    return os.environ.get("LABCTL_ALONE") == "1" and not runs.alive()


def bpf_ids(command: int) -> list[str]:
    """The ids of every BPF object of one kind, by bpf(2); empty where that is refused."""
    libc, found, current = ctypes.CDLL(None, use_errno=True), [], 0
    while True:
        attr = (ctypes.c_uint32 * 32)(current)
        if libc.syscall(321 if os.uname().machine == "x86_64" else 280, command, attr, 12) != 0:
            return [f"{command}:{one}" for one in found]
        current = attr[1]
        found.append(current)


def namespaces(kinds: tuple[str, ...] = ("net", "mnt", "pid", "user")) -> list[str]:
    """Every namespace that a process is in."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            for kind in kinds:
                with contextlib.suppress(OSError):
                    found.add(os.readlink(entry / "ns" / kind))
    return sorted(found)


def kernel_thread(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6]) & 0x200000 != 0  # PF_KTHREAD
    return True


class Watched:
    """A run, and all that belongs to it: its processes by (id, time of birth), and its cgroup."""

    def __init__(self, tmp_path: Path, blocks: int = 0, scenario: str = SCENARIO) -> None:
        self.before = machine()
        self.alone = alone()
        self.directory = tmp_path
        self.process = start(tmp_path, blocks, scenario)
        self.born: set[tuple[int, int]] = set()
        self.namespaces: set[str] = set()
        self.seen = 0  # when the last process was born that the last look at the run found, in ticks since boot

    def until(self, words: str) -> None:
        """Read progress up to the line that has `words`, and note who is alive then."""
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if words in line:
                break
        else:
            pytest.fail(f"the run ended before '{words}':\n{''.join(said)}")
        self.born = descendants(self.process.pid)
        assert len(self.born) > 1
        mine = set()
        for pid, _born in self.born:
            mine |= memberships(pid)
        self.namespaces = mine - memberships(os.getpid())
        self.seen = max(born for _pid, _parent, born, _state in processes())

    def saved(self) -> Path:
        (directory,) = (self.directory / "results" / "small").iterdir()
        return directory

    def left_over(self) -> list[str]:
        """What there still is of the run, in words; empty is what we want."""
        alive = {(pid, born): state for pid, _parent, born, state in processes()}
        run, root = self.id(), cgroup2_root()
        now = machine()
        whole = [name for name in now if self.alone or name not in SHARED]
        return [
            *(f"process {pid}" for pid, born in self.born if alive.get((pid, born), "Z") != "Z"),
            *(f"process with {self.directory}: {pid}" for pid in mentioning(str(self.directory))),
            *([f"cgroup {run}"] if root and (root / run).exists() else []),
            *([f"registry entry {run}"] if (runs.registry() / run).exists() else []),
            *(f"namespace {one}" for one in self.namespaces_left()),
            *(f"{name}: {odd}" for name in whole if (odd := self._differs(name, set(now[name]))))]

    def _differs(self, name: str, now: set[str]) -> set[str]:
        """What one of the machine's lists has otherwise than before; of what others end as well, what has come."""
        before = set(self.before[name])
        if name == "processes":
            return now - before - children_of_others(before)
        return now - before if name == "namespaces" else now ^ before

    def namespaces_left(self) -> set[str]:
        """Those that somebody is still in who was born before the last look at the run.

        The kernel gives the number of a namespace that ended to the next one: who was born later may be of another run.
        """
        if not self.namespaces:
            return set()
        return self.namespaces & {one for pid, _parent, born, _state in processes() if born <= self.seen
                                  for one in memberships(pid)}

    def id(self) -> str:
        return str(json.loads((self.saved() / "environment.json").read_text())["run"])

    def await_gone(self, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while (left := self.left_over()) and time.monotonic() < deadline:
            os.sched_yield()
        if left:
            raise AssertionError(f"left over: {'; '.join(left)}")


def memberships(pid: int) -> set[str]:
    """The namespaces that a process is in, of the kinds that a run makes; none of one that is gone."""
    found = set()
    for kind in ("net", "mnt", "pid"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
    return found


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


def children_of_others(before: set[str]) -> set[str]:
    """Processes that have come since, of parents that were there before: a shell beside us starts what it likes.

    Not of the first process, which adopts what is left over, and not of ours.
    """
    parents = {pid: parent for pid, parent, _born, _state in processes()}
    found = set()
    for pid in parents:
        one = pid
        while one in parents and str(one) not in before:
            one = parents[one]
        if one != pid and one not in (0, 1, os.getpid()):
            found.add(str(pid))
    return found


def mentioning(text: str) -> list[int]:
    """Living processes with `text` in their command line; those of the dead are empty."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if text in (entry / "cmdline").read_bytes().decode(errors="replace"):
                    found.append(int(entry.name))
    return found


def start(tmp_path: Path, blocks: int = 0, scenario: str = SCENARIO) -> subprocess.Popen[str]:
    (tmp_path / "small.yaml").write_text(scenario)
    return subprocess.Popen(
        [sys.executable, "-m", "bench.cli", "run", str(tmp_path / "small.yaml"), "--blocks", str(blocks), "--json",
         "--results", str(tmp_path / "results")], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True)
