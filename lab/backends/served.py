"""What testbeds of real hosts share: commands over each host's first process, services, proof that packets pass."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from lab.backends.base import Completed, Usage
from lab.deploy.enforcement import AnsibleEnforcement
from lab.hosts import contents, init_client, roles, scripts
from lab.hosts.attempts import Actor, Attempt
from lab.hosts.build import build
from lab.hosts.control import Fleet
from lab.model import FAMILIES, STRANGER, Family, Flow, Point, Topology

UP_TIMEOUT_S = 60.0
_SPARE_FILES = 512  # of the run itself, beside one a service


class LabDownError(RuntimeError):
    """The lab did not come up; the message names the host and what it lacked."""


class ServedTestbed:
    """Live hosts whose first process takes commands at a unix socket. See `lab.backends.base.Testbed`.

    A backend makes them and says where things are: `socket`, `cgroup_of`, `put`, `shadow`, `_control`, `_rss`.
    """

    topology: Topology
    services: Fleet
    cgroup: Path | None  # of the run, as labctl sees it
    _control: str  # the fleet's socket, as a host sees it
    _labhost: Path  # the service, compiled for this backend

    # --- the five verbs ---

    def run(self, host: str, argv: Sequence[str], *, input: bytes = b"", daemon: bool = False) -> Completed:
        """Run a command on a host to its end; `daemon` puts it, and what it leaves running, in the daemons' cgroup."""
        done = init_client.run(self.socket(host), list(argv), input=input, cgroup=self.cgroup_of(host, daemon))
        return Completed(done.status, done.stdout, done.stderr)

    def spawn(self, host: str, argv: Sequence[str], *, process: str | None = None,
              env: Mapping[str, str] | None = None) -> ChildOnHost:
        """Start a command on a host with binary pipes, as the user of the declared `process` or as root."""
        declared = self.topology.processes[process] if process else None
        home, uid = self.home_of(host, declared.path) if declared else host, declared.uid if declared else None
        return ChildOnHost(self.socket(home), list(argv), uid, self.cgroup_of(host, False), dict(env or {}))

    def put(self, host: str, files: Mapping[str, bytes]) -> None:
        """Place files (absolute paths on the host, mode 0755) as root."""
        raise NotImplementedError

    def shadow(self, host: str, source: str, path: str) -> Completed:
        """Who executes `path` on the host from now on gets the file `source`; who runs there keeps its identity."""
        raise NotImplementedError

    def usage(self, memory: bool = True) -> Usage:
        """CPU by cgroup and, if asked, the daemons' proportional memory; without cgroup v2 everything is empty."""
        if self.cgroup is None:
            return Usage({}, {}, {}, "unavailable: no writable cgroup v2")
        names = self._names()
        hosts = {name: cpu_s(self.cgroup / name) for name in names}
        daemons = {name: cpu_s(self.cgroup / f"{name}.d") for name in names}
        rss = {name: self._rss(name) for name in names} if memory else {}
        return Usage(_part(hosts, 0), _part(daemons, 0), rss,
                     "cgroup v2 cpu.stat usage_usec, system_usec; smaps_rollup Pss", _part(hosts, 1), _part(daemons, 1))

    def enforcement(self, arm: str, covers: Callable[[Flow], bool]) -> AnsibleEnforcement:
        """`covers` is for backends that only pretend; here packets decide."""
        return AnsibleEnforcement(self, arm)

    # --- enforcement points ---

    def run_at(self, point: Point, argv: Sequence[str]) -> Completed:
        """Run a command at an enforcement point to its end; what it leaves running counts as the arm's."""
        place = self.place_of(point)
        done = init_client.run(self.socket(place), list(argv), cgroup=self.cgroup_of(place, True),
                               env=self.environment_of(point))
        return Completed(done.status, done.stdout, done.stderr)

    def put_at(self, point: Point, files: Mapping[str, bytes]) -> None:
        """Place files at an enforcement point."""
        self.put(self.place_of(point), files)

    def way_to(self, point: Point) -> dict[str, str]:
        """How Ansible's connection plugin (lab/deploy/ansible) gets to an enforcement point."""
        place = self.place_of(point)
        return {"lab_socket": str(self.socket(place)), "lab_cgroup": str(self.cgroup_of(place, True) or ""),
                "lab_environment": "\n".join(f"{name}={value}" for name, value in self.environment_of(point).items())}

    def place_of(self, point: Point) -> str:
        """Whose first process runs the commands of an enforcement point."""
        return self.agent_of(point.host)

    def environment_of(self, _point: Point) -> Mapping[str, str]:
        """What a command at an enforcement point is told of it, as variables."""
        return {}

    def port_of(self, point: Point) -> str:
        """The interface that is the switch side of a host's link, of a backend that has them."""
        raise NotImplementedError

    def relearn(self) -> None:
        """Have the switches forget behind which port each host is, after somebody spoke in another's name."""

    def port_cgroup(self) -> Path | None:
        """The cgroup of what runs at switch ports."""
        raise NotImplementedError

    # --- parts ---

    def socket(self, host: str) -> Path:
        """Where the host's first process listens."""
        raise NotImplementedError

    def agent_of(self, host: str) -> str:
        """Where what an arm puts on a host is put and run: on the host itself, unless it has a place beside it."""
        return host

    def cgroup_of(self, host: str, daemon: bool) -> Path | None:
        """The cgroup of a host, or of its daemons, as the host sees it."""
        raise NotImplementedError

    def home_of(self, host: str, _path: str) -> str:
        """Where the executable `path` of a host is: on the host itself, unless its processes have places of their own.
        """
        return host

    def pid(self, host: str) -> int:
        """The host's PID 1, as labctl sees it."""
        raise NotImplementedError

    def _rss(self, host: str) -> int:
        """Proportional memory of the host's daemons, bytes."""
        raise NotImplementedError

    def _names(self) -> list[str]:
        return [self.topology.router, *self.topology.hosts]

    def _make_cgroups(self) -> None:
        if self.cgroup:
            for name in self._names():
                for suffix in ("", ".d"):
                    (self.cgroup / f"{name}{suffix}").mkdir()

    def _serve_all(self, actors: Collection[Actor]) -> None:
        """Services running and told what they are for, every host heard by a neighbour. Raises LabDownError."""
        self._serve_some(actors)
        self._await_datagrams()

    def _serve_some(self, actors: Collection[Actor]) -> None:
        self._start_services(actors)
        self.services.await_actors(actors, UP_TIMEOUT_S)
        self._instruct(frozenset(actors))

    def _start_services(self, actors: Collection[Actor]) -> None:
        """Place each service's executable and start it. It ends with its connection to the fleet, or with its host."""
        placed: set[tuple[str, str]] = set()

        def commands() -> Iterator[tuple[Path, list[str], Path | None]]:
            for actor in actors:
                argv, path = self._serve(actor), roles.path_of(self.topology, actor.process)
                if (actor.host, path) not in placed:
                    placed.add((actor.host, path))
                    self._place_actor(actor, path)
                yield self.socket(self.home_of(actor.host, path)), argv, self.cgroup_of(actor.host, False)

        init_client.start_all(commands())

    def _place_actor(self, actor: Actor, path: str) -> None:
        """Put there what a process is started from: the built-in service, tampered with if so declared, or a script."""
        process = self.topology.processes.get(actor.process)
        if process and process.interpreter:
            self.put(actor.host, {path: scripts.text(process), scripts.LIBRARY_PATH: build(library=True).read_bytes()})
        elif process and process.sha256 == contents.of(self._labhost).rewritten:
            self.put(actor.host, {path: contents.rewritten(self._labhost)})
        else:
            self._place_service(actor.host, path)

    def _place_service(self, host: str, path: str) -> None:
        """Put the built-in service there as an executable of its own."""
        raise NotImplementedError

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
        argv = [*roles.command_of(self.topology, actor.process), "serve", "--control", self._control,
                "--host", actor.host, "--process", actor.process, "--user", actor.user, "--uid", str(uid)]
        declared = self.topology.processes.get(actor.process)
        if declared and declared.vulnerable and declared.user == actor.user:
            argv.append("--vulnerable")
        if declared and declared.poses_as:
            argv += ["--pose", declared.poses_as]
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


def cpu_s(cgroup: Path) -> tuple[float, float]:
    """Seconds in all, and of these in the kernel."""
    found = dict(line.split() for line in (cgroup / "cpu.stat").read_text().splitlines())
    return int(found.get("usage_usec", 0)) / 1e6, int(found.get("system_usec", 0)) / 1e6


def _part(spent: Mapping[str, tuple[float, float]], part: int) -> dict[str, float]:
    return {name: both[part] for name, both in spent.items()}


def memory_of(cgroup: Path) -> int:
    """Proportional memory of what runs in a control group, bytes."""
    return sum(pss(int(pid)) for pid in (cgroup / "cgroup.procs").read_text().split())


def pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):  # it ended between the listing and here
        return 0
    return 0


def check_files(services: int) -> None:
    """Raise LabDownError where so many services cannot be held open."""
    needed = services + _SPARE_FILES
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= limit < needed:
        raise LabDownError(f"lab: {needed} open files are needed and {limit} allowed; type: ulimit -Hn {needed}")
