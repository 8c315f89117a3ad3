"""The Mininet backend: real hosts, real packets, inside the run's private namespaces."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from lab import packages
from lab.backends import mininet_net, reclaim
from lab.backends import switch as switch_side
from lab.backends.base import Completed, Usage
from lab.backends.switch import Switch
from lab.deploy.enforcement import AnsibleEnforcement
from lab.hosts import init_client, roles
from lab.hosts.attempts import Actor, Attempt
from lab.hosts.control import Fleet
from lab.isolation import RUN_DIR
from lab.model import FAMILIES, STRANGER, Family, Flow, Point, Topology

UP_TIMEOUT_S = 60.0
DOWN_TIMEOUT_S = 10.0
_SPARE_FILES = 512  # of the run itself, beside one a service


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
        self.switch = Switch(self.cgroup / switch_side.CGROUP if self.cgroup else None)
        self.net = mininet_net.make_net(topology, labhost, self._sockets)
        self.switch.seclude()
        self._pids = {node.name: int(node.pid) for node in self.net.hosts}
        self.services = Fleet(RUN_DIR / "control.sock")
        self._start_services(actors)
        self.services.await_actors(actors, UP_TIMEOUT_S)
        self._instruct(frozenset(actors))
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
        switch_side.put(Path(f"/proc/{self._pids[host]}/root"), files)

    def usage(self, memory: bool = True) -> Usage:
        """CPU by cgroup and, if asked, the daemons' proportional memory; without cgroup v2 everything is empty."""
        if self.cgroup is None:
            return Usage({}, {}, {}, "unavailable: no writable cgroup v2")
        hosts = {name: _cpu_s(self.cgroup / name) for name in self._pids}
        daemons = {name: _cpu_s(self.cgroup / f"{name}.d") for name in self._pids}
        daemons[switch_side.NAME] = _cpu_s(self.cgroup / switch_side.CGROUP)
        rss = {name: sum(_pss(int(pid)) for pid in (self.cgroup / f"{name}.d/cgroup.procs").read_text().split())
               for name in self._pids} if memory else {}
        return Usage(_part(hosts, 0), _part(daemons, 0), rss,
                     "cgroup v2 cpu.stat usage_usec, system_usec; smaps_rollup Pss", _part(hosts, 1), _part(daemons, 1))

    def enforcement(self, arm: str, covers: Callable[[Flow], bool]) -> AnsibleEnforcement:
        """`covers` is for backends that only pretend; here packets decide."""
        return AnsibleEnforcement(self, arm)

    # --- enforcement points ---

    def run_at(self, point: Point, argv: Sequence[str]) -> Completed:
        """Run a command at an enforcement point to its end; what it leaves running counts as the arm's."""
        if point.kind == "port":
            return self.switch.run(argv, self.port_of(point))
        return self.run(point.host, argv, daemon=True)

    def put_at(self, point: Point, files: Mapping[str, bytes]) -> None:
        """Place files at an enforcement point."""
        if point.kind == "port":
            switch_side.put(Path("/"), files)
        else:
            self.put(point.host, files)

    def port_of(self, point: Point) -> str:
        """The interface that is the switch side of a host's link."""
        return mininet_net.port_of(self.topology, point.host)

    # --- parts ---

    def socket(self, host: str) -> Path:
        return self._sockets / f"{host}.sock"

    def cgroup_of(self, host: str, daemon: bool) -> Path | None:
        return self.cgroup / (f"{host}.d" if daemon else host) if self.cgroup else None

    def pid(self, host: str) -> int:
        """The host's PID 1, as labctl sees it."""
        return self._pids[host]

    def close(self) -> None:
        """End services, then hosts; returns when the kernel has taken their network namespaces back.

        Waits no longer than DOWN_TIMEOUT_S, should somebody else hold one. What is missed here goes with the run's PID
        namespace.
        """
        self.services.close()
        self.net.stop()
        reclaim.await_reclaimed([f"p{index}" for index in range(len(self.topology.hosts))], DOWN_TIMEOUT_S)

    def _make_cgroups(self) -> None:
        if self.cgroup:
            for name in [self.topology.router, *self.topology.hosts]:
                for suffix in ("", ".d"):
                    (self.cgroup / f"{name}{suffix}").mkdir()
            (self.cgroup / switch_side.CGROUP).mkdir()

    def _start_services(self, actors: Collection[Actor]) -> None:
        """Place each service's executable and start it. It ends with its connection to the fleet, or with its host."""
        binary = self._labhost.read_bytes()
        placed: set[tuple[str, str]] = set()

        def commands() -> Iterator[tuple[Path, list[str], Path | None]]:
            for actor in actors:
                argv = self._serve(actor)
                if (actor.host, argv[0]) not in placed:
                    placed.add((actor.host, argv[0]))
                    self.put(actor.host, {argv[0]: binary})
                yield self.socket(actor.host), argv, self.cgroup_of(actor.host, False)

        init_client.start_all(commands())

    def _instruct(self, actors: frozenset[Actor]) -> None:
        """Tell every service that was started what to listen on and whom to call."""
        listeners = roles.listeners(self.topology)
        for proto in ("tcp", "udp"):
            orders = {actor: ("listen", proto, ",".join(map(str, by[proto])))
                      for actor, by in listeners.items() if by.get(proto) and actor in actors}
            self.services.request_all(orders, UP_TIMEOUT_S)
        calls = {actor: ("calls", ";".join(f"4,{address},{port}" for address, port in targets))
                 for actor, targets in roles.calls(self.topology).items() if actor in actors}
        self.services.request_all(calls, UP_TIMEOUT_S)

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
        waiting = list(self._hellos())
        for _ in range(20):
            results = self.services.probe(waiting, timeout_s=1.0)
            waiting = [attempt for attempt, got in zip(waiting, results, strict=True) if got.outcome != "OPEN"]
            if not waiting:
                return
        named = ", ".join(f"{attempt.actor.host} (IPv{attempt.family})" for attempt in waiting[:5])
        raise LabDownError(f"lab: {len(waiting)} hosts never exchanged a datagram with a neighbour, first {named}")

    def _hellos(self) -> Iterator[Attempt]:
        """Each host to the next of its segment, a lone one to the router, in both families."""
        for segment in self.topology.segments.values():
            hosts = [host for host in self.topology.hosts.values() if host.segment == segment.name]
            gateway: dict[Family, str] = {4: segment.gateway4, 6: segment.gateway6}
            for host, mate in zip(hosts, hosts[1:] + hosts[:1], strict=True):
                for family in FAMILIES:
                    address = mate.address(family) if mate is not host else gateway[family]
                    yield Attempt(Actor(host.name, STRANGER, "nobody"), "icmp", family, address, 0)


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


def _cpu_s(cgroup: Path) -> tuple[float, float]:
    """Seconds in all, and of these in the kernel."""
    found = dict(line.split() for line in (cgroup / "cpu.stat").read_text().splitlines())
    return int(found.get("usage_usec", 0)) / 1e6, int(found.get("system_usec", 0)) / 1e6


def _part(spent: Mapping[str, tuple[float, float]], part: int) -> dict[str, float]:
    return {name: both[part] for name, both in spent.items()}


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
    _check_files(len(actors) + _SPARE_FILES)
    testbed = MininetTestbed(topology, labhost, cgroup, actors)
    try:
        yield testbed
    finally:
        testbed.close()


def _check_files(needed: int) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= limit < needed:
        raise LabDownError(f"lab: {needed} open files are needed and {limit} allowed; type: ulimit -Hn {needed}")
