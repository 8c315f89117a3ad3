"""Where an agent lives: alone on its host, or one for all hosts of a lab on this machine.

In a lab every host's commands run in cgroups `RUN/HOST.d` beside the host's own `RUN/HOST`, and share /run/labctl.
There the programs are attached once, to `RUN`; whichever host comes first starts the agent that serves them all.
In a container of a lab they are attached to the host's own cgroup, which is at CONTAINED there, and an agent serves
that host alone. An agent on the machine that carries containers serves them all; the variable CONTAINER tells each of
its commands of one, and the programs are attached once, to the run. Anywhere else they are attached to the root of
cgroup v2, and the agent serves this host alone.

Every command of the agent is a process of its own, on every host of a lab: what is imported here is paid for hundreds
of times. So no pathlib, subprocess, typing or dataclasses.
"""

from __future__ import annotations

import fcntl
import os

from .lean import suppress

LAB = "/run/labctl"  # lab.isolation.RUN_DIR
CONTAINED, PINS = "/run/lab/cgroup", "/run/lab/bpf"  # lab.backends.docker_specs: the run's cgroup, a bpffs
CONTAINER = "LABCTL_CONTAINER"  # a variable: the first process of the container that a command is about, and its birth
ADOPTING = ("adopt_tasks", "adopt_listeners", "adopt_sockets")  # iterators, in the order that they need
GOT = b"got\n"  # what was collected has arrived, and need not be kept


class AgentError(Exception):
    """What went wrong, for whoever called the command, in one line."""


class Place:
    """Paths of one agent. `directory`: the host's own, where its files were placed; `shared`: of all that it serves."""

    def __init__(self, host: str, directory: str) -> None:
        self.host, self.directory = host, os.path.abspath(directory)
        first, _, birth = os.environ.get(CONTAINER, "0").partition(":")
        self.container = int(first)  # 0: the host is where we are
        self.gone = self.container > 0 and born(self.container) != birth  # and the number may be another's by now
        run = None if self.container else _lab_cgroup(host)
        self.in_lab = run is not None
        contained = CONTAINED if self.container else _contained(host)
        self.cgroup = run or contained or _cgroup_root()
        self.contained = contained is not None
        self.shared = f"{LAB}/agent-ebpf" if self.in_lab else f"{self.directory}/own"
        if self.container:
            self.shared = f"{os.path.dirname(self.directory)}.own"
        # The host's root directory, its processes, its network.
        self.ways: tuple[str, ...] = ("/", "/proc", "/proc/self/ns/net")
        if self.container and not self.gone:
            self.ways = tuple(f"/proc/{self.container}/{way}" for way in ("root", "root/proc", "ns/net"))
        self.bpf = f"{LAB}/bpf/agent-ebpf" if self.in_lab else f"{PINS}/agent-ebpf" if contained else (
            "/sys/fs/bpf/labctl-agent")
        self.socket, self.lock = f"{self.shared}/sock", f"{self.shared}/lock"
        self.names = f"{self.shared}/names"
        self.members, self.log = f"{self.shared}/hosts", f"{self.shared}/log"

    def secure(self) -> None:
        """Make the shared directory, ours alone."""
        for path in (self.shared, self.members):
            os.makedirs(path, mode=0o700, exist_ok=True)
            if os.stat(path).st_uid != os.geteuid():
                raise AgentError(f"{path}: owned by another user; remove it")

    def member(self, host: str) -> str:
        return f"{self.members}/{host}"

    def take(self, name: str, block: bool = True) -> int | None:
        """Hold a lock by `name` until the descriptor is closed; None where another process holds it."""
        handle = os.open(f"{self.shared}/{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            return None
        return handle


def born(pid: int) -> str:
    """When a process was born, in clock ticks since the machine was (proc_pid_stat(5)); empty where there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _lab_cgroup(host: str) -> str | None:
    """The cgroup of the lab's run, if this process is in the one beside `host`'s."""
    path = _own_cgroup()
    parent, _, name = path.rpartition("/")
    if name == f"{host}.d" and os.path.isdir(f"{_cgroup_root()}{parent}/{host}") and os.path.isdir(LAB):
        return f"{_cgroup_root()}{parent}"
    return None


def _contained(host: str) -> str | None:
    """The cgroup of a host that is a container of a lab, if we are in it."""
    path = f"{CONTAINED}/{host}"
    return path if os.path.isdir(path) and os.path.isdir(PINS) else None


def _own_cgroup() -> str:
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            if line.startswith("0::"):
                return line[3:].rstrip("\n")
    return ""


def _cgroup_root() -> str:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if right.startswith("cgroup2 "):
                return left.split()[4]
    raise AgentError("no cgroup v2 is mounted; mount -t cgroup2 none /sys/fs/cgroup")


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def write(path: str, data: bytes) -> None:
    """Write whole or not at all."""
    fresh = f"{path}.new"
    with open(fresh, "wb") as file:
        file.write(data)
    os.rename(fresh, path)


def remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
