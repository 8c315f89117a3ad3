"""The Mininet backend: real hosts, real packets, inside the run's private namespaces."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from lab import packages
from lab.backends import mininet_net
from lab.backends.base import Completed, Usage
from lab.deploy.enforcement import AnsibleEnforcement
from lab.hosts import init_client, roles
from lab.hosts.attempts import Actor, Attempt
from lab.hosts.control import Fleet
from lab.isolation import RUN_DIR
from lab.model import FAMILIES, STRANGER, Family, Flow, Topology

UP_TIMEOUT_S = 60.0


class LabDownError(RuntimeError):
    """The lab did not come up; the message names the host and what it lacked."""


class MininetTestbed:
    """Live hosts in namespaces. See `lab.backends.base.Testbed`."""

    def __init__(self, topology: Topology, labhost: Path, cgroup: Path | None, actors: Collection[Actor]) -> None:
        self.topology = topology
        self.cgroup = cgroup
        self._labhost = labhost
        self._sockets = RUN_DIR / "hosts"
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        self._make_cgroups()
        self.net = mininet_net.make_net(topology, labhost, self._sockets)
        self._pids = {node.name: int(node.pid) for node in self.net.hosts}
        self.services = Fleet(RUN_DIR / "control.sock")
        self._handles = self._start_services(actors)
        self.services.await_actors(actors, UP_TIMEOUT_S)
        self._instruct()
        self._await_datagrams()

    # --- the five verbs ---

    def run(self, host: str, argv: Sequence[str], *, input: bytes = b"", daemon: bool = False) -> Completed:
        """Run a command on a host to its end; `daemon` puts it, and what it leaves running, in the daemons' cgroup."""
        done = init_client.run(self.socket(host), list(argv), input=input, cgroup=self.cgroup_of(host, daemon))
        return Completed(done.status, done.stdout, done.stderr)

    def spawn(self, host: str, argv: Sequence[str], *, process: str | None = None,
              env: Mapping[str, str] | None = None) -> ChildOnHost:
        """Start a command on a host with binary pipes, as the user of the declared `process` or as root."""
        uid = self.topology.processes[process].uid if process else None
        return ChildOnHost(self.socket(host), list(argv), uid, self.cgroup_of(host, False), dict(env or {}))

    def put(self, host: str, files: Mapping[str, bytes]) -> None:
        """Place files (absolute paths on the host, mode 0755) as root."""
        root = Path(f"/proc/{self._pids[host]}/root")
        for path, content in files.items():
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # a running executable cannot be written over, but it can be replaced
            target.write_bytes(content)
            target.chmod(0o755)

    def usage(self, memory: bool = True) -> Usage:
        """CPU by cgroup and, if asked, the daemons' proportional memory; without cgroup v2 everything is empty."""
        if self.cgroup is None:
            return Usage({}, {}, {}, "unavailable: no writable cgroup v2")
        host, daemon, rss = {}, {}, {}
        for name in self._pids:
            host[name] = _cpu_s(self.cgroup / name)
            daemon[name] = _cpu_s(self.cgroup / f"{name}.d")
            if memory:
                procs = (self.cgroup / f"{name}.d/cgroup.procs").read_text().split()
                rss[name] = sum(_pss(int(pid)) for pid in procs)
        return Usage(host, daemon, rss, "cgroup v2 cpu.stat usage_usec; smaps_rollup Pss")

    def enforcement(self, arm: str, covers: Callable[[Flow], bool]) -> AnsibleEnforcement:
        """`covers` is for backends that only pretend; here packets decide."""
        return AnsibleEnforcement(self, arm)

    # --- parts ---

    def socket(self, host: str) -> Path:
        return self._sockets / f"{host}.sock"

    def cgroup_of(self, host: str, daemon: bool) -> Path | None:
        return self.cgroup / (f"{host}.d" if daemon else host) if self.cgroup else None

    def pid(self, host: str) -> int:
        """The host's PID 1, as labctl sees it."""
        return self._pids[host]

    def close(self) -> None:
        """End services, then hosts, in order. What is missed here goes with the run's PID namespace."""
        self.services.close()
        for handle in self._handles:
            handle.kill()
        self.net.stop()

    def _make_cgroups(self) -> None:
        if self.cgroup:
            for name in [self.topology.router, *self.topology.hosts]:
                for suffix in ("", ".d"):
                    (self.cgroup / f"{name}{suffix}").mkdir()

    def _start_services(self, actors: Collection[Actor]) -> list[init_client.Handle]:
        by_host: dict[str, list[Actor]] = {}
        for actor in actors:
            by_host.setdefault(actor.host, []).append(actor)
        with ThreadPoolExecutor(4) as pool:
            return [h for handles in pool.map(self._start_on, by_host.values()) for h in handles]

    def _start_on(self, actors: list[Actor]) -> list[init_client.Handle]:
        host = actors[0].host
        binary = self._labhost.read_bytes()
        self.put(host, dict.fromkeys({roles.path_of(self.topology, actor.process) for actor in actors}, binary))
        return [init_client.spawn(self.socket(host), self._serve(actor), cgroup=self.cgroup_of(host, False))
                for actor in actors]

    def _instruct(self) -> None:
        """Tell every service what to listen on and whom to call."""
        listeners = roles.listeners(self.topology)
        for proto in ("tcp", "udp"):
            orders = {actor: ("listen", proto, ",".join(map(str, by[proto])))
                      for actor, by in listeners.items() if by.get(proto)}
            self.services.request_all(orders, UP_TIMEOUT_S)
        self.services.request_all({actor: ("calls", ";".join(f"4,{address},{port}" for address, port in targets))
                                   for actor, targets in roles.calls(self.topology).items()}, UP_TIMEOUT_S)

    def _serve(self, actor: Actor) -> list[str]:
        uid = 0 if actor.process == roles.OBSERVER else self.topology.users.get(actor.user, 65534)
        argv = [roles.path_of(self.topology, actor.process), "serve", "--control", str(RUN_DIR / "control.sock"),
                "--host", actor.host, "--process", actor.process, "--user", actor.user, "--uid", str(uid)]
        declared = self.topology.processes.get(actor.process)
        if declared and declared.vulnerable and declared.user == actor.user:
            argv.append("--vulnerable")
        if actor.process == roles.OBSERVER:
            argv.append("--observe-icmp")
        return argv

    def _await_datagrams(self) -> None:
        """Up means up: every host exchanges an IPv4 and an IPv6 datagram with a neighbour, or we say which cannot."""
        waiting = [(host.name, family) for host in self.topology.hosts.values() for family in FAMILIES]
        for _ in range(20):
            attempts = [self._hello(name, family) for name, family in waiting]
            results = self.services.probe(attempts, timeout_s=1.0)
            waiting = [pair for pair, got in zip(waiting, results, strict=True) if got.outcome != "OPEN"]
            if not waiting:
                return
        named = ", ".join(f"{host} (IPv{family})" for host, family in waiting[:5])
        raise LabDownError(f"lab: {len(waiting)} hosts never exchanged a datagram with a neighbour, first {named}")

    def _hello(self, name: str, family: Family) -> Attempt:
        host = self.topology.hosts[name]
        mates = [h for h in self.topology.hosts.values() if h.segment == host.segment]
        mate = mates[(mates.index(host) + 1) % len(mates)]
        segment = self.topology.segments[host.segment]
        gateway = segment.gateway4 if family == 4 else segment.gateway6
        address = mate.address(family) if mate is not host else gateway
        return Attempt(Actor(name, STRANGER, "nobody"), "icmp", family, address, 0)


class ChildOnHost:
    """A process on a host with binary pipes; `kill` ends it and its group."""

    def __init__(self, socket: Path, argv: list[str], uid: int | None, cgroup: Path | None,
                 env: dict[str, str]) -> None:
        child_in, self_in = os.pipe()
        self_out, child_out = os.pipe()
        try:
            self._handle = init_client.spawn(socket, argv, uid=uid, gid=uid, cgroup=cgroup, env=env,
                                             stdin=child_in, stdout=child_out, stderr=2)
        finally:
            os.close(child_in)
            os.close(child_out)
        self.stdin: IO[bytes] = os.fdopen(self_in, "wb", buffering=0)
        self.stdout: IO[bytes] = os.fdopen(self_out, "rb")
        self.pid = self._handle.pid

    def wait(self, timeout: float | None = None) -> int:
        return self._handle.wait(timeout)

    def kill(self) -> None:
        self._handle.kill()  # first: closing a pipe that a thread is reading waits for that thread
        for pipe in (self.stdin, self.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def _cpu_s(cgroup: Path) -> float:
    for line in (cgroup / "cpu.stat").read_text().splitlines():
        key, value = line.split()
        if key == "usage_usec":
            return int(value) / 1e6
    return 0.0


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):  # it ended between the listing and here
        return 0
    return 0


@contextlib.contextmanager
def up(topology: Topology, labhost: Path, cgroup: Path | None,
       actors: Collection[Actor]) -> Iterator[MininetTestbed]:
    """Stand the topology up, services running, every host heard by a neighbour. Raises LabDownError or OSError."""
    if missing := packages.missing_packages():
        raise LabDownError(f"lab: packages are missing; as root type: {packages.apt_line(missing)}")
    testbed = MininetTestbed(topology, labhost, cgroup, actors)
    try:
        yield testbed
    finally:
        testbed.close()
