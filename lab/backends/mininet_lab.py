"""The Mininet backend: real hosts, real packets, inside the run's private namespaces."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lab import packages
from lab.backends import mininet_net, reclaim
from lab.backends import switch as switch_side
from lab.backends.base import Completed, Usage
from lab.backends.served import LabDownError, ServedTestbed, check_files, cpu_s, memory_of
from lab.backends.switch import Switch
from lab.hosts.attempts import Actor
from lab.hosts.control import Fleet
from lab.isolation import RUN_DIR, tool_env
from lab.model import Point, Topology

__all__ = ["LabDownError", "MininetTestbed", "up"]

DOWN_TIMEOUT_S = 10.0


class MininetTestbed(ServedTestbed):
    """Live hosts in namespaces. See `lab.backends.base.Testbed`."""

    def __init__(self, topology: Topology, labhost: Path, cgroup: Path | None, actors: Collection[Actor]) -> None:
        self.topology = topology
        self.cgroup = cgroup
        self._labhost, self._binary = labhost, labhost.read_bytes()
        self._ports = {name: mininet_net.port_of(topology, name) for name in topology.hosts}
        self._control = str(RUN_DIR / "control.sock")
        self._sockets = RUN_DIR / "hosts"
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        self._make_cgroups()
        self.switch = Switch(self.cgroup / switch_side.CGROUP if self.cgroup else None)
        if self.switch.cgroup:
            self.switch.cgroup.mkdir()
        self.net = mininet_net.make_net(topology, labhost, self._sockets)
        self.switch.seclude()
        self._pids = {node.name: int(node.pid) for node in self.net.hosts}
        self.services = Fleet(self._control)
        self._serve_all(actors)

    def put(self, host: str, files: Mapping[str, bytes]) -> None:
        """Place files (absolute paths on the host, mode 0755) as root."""
        switch_side.put(Path(f"/proc/{self._pids[host]}/root"), files)

    def shadow(self, host: str, source: str, path: str) -> Completed:
        """Who executes `path` on the host from now on gets the file `source`; who runs there keeps its identity."""
        return self.run(host, ["mount", "--bind", source, path])

    def usage(self, memory: bool = True) -> Usage:
        """As of any testbed, with what an arm has running at switch ports as one more daemon."""
        found = super().usage(memory)
        if self.cgroup is None:
            return found
        spent, system = cpu_s(self.cgroup / switch_side.CGROUP)
        rss = {switch_side.NAME: memory_of(self.cgroup / switch_side.CGROUP)} if memory else {}
        return replace(found, daemon_cpu_s={**found.daemon_cpu_s, switch_side.NAME: spent},
                       daemon_system_s={**found.daemon_system_s, switch_side.NAME: system},
                       daemon_rss_bytes={**found.daemon_rss_bytes, **rss})

    # --- enforcement points ---

    def run_at(self, point: Point, argv: Sequence[str]) -> Completed:
        """Run a command at an enforcement point to its end; what it leaves running counts as the arm's."""
        if point.kind == "port":
            return self.switch.run(argv, self.port_of(point))
        return super().run_at(point, argv)

    def put_at(self, point: Point, files: Mapping[str, bytes]) -> None:
        """Place files at an enforcement point."""
        if point.kind == "port":
            switch_side.put(Path("/"), files)
        else:
            super().put_at(point, files)

    def way_to(self, point: Point) -> dict[str, str]:
        """How Ansible's connection plugin gets to an enforcement point."""
        if point.kind == "port":
            return {"lab_port": self.port_of(point), "lab_cgroup": str(self.switch.cgroup or "")}
        return super().way_to(point)

    def port_of(self, point: Point) -> str:
        """The interface that is the switch side of a host's link."""
        return self._ports[point.host]

    def relearn(self) -> None:
        """Have the bridges forget behind which port each host is, after somebody spoke in another's name."""
        for segment in self.topology.segments:
            bridge = mininet_net.bridge_of(self.topology, segment)
            flush = ["ip", "link", "set", "dev", bridge, "type", "bridge", "fdb_flush"]
            subprocess.run(flush, env=tool_env(), check=True)

    def port_cgroup(self) -> Path | None:
        """The cgroup of what runs at switch ports."""
        return self.switch.cgroup

    # --- hosts that join later: mininet_churn.py ---

    @property
    def labhost(self) -> Path:
        """The program that makes hosts and serves in them."""
        return self._labhost

    def adopt(self, topology: Topology, name: str, port: str) -> None:
        """From now on the lab is `topology`, in which `name` is new: its link's switch side is called `port`."""
        self.topology = topology
        self._ports[name] = port
        for daemon in (False, True):
            if group := self.cgroup_of(name, daemon):
                group.mkdir()

    def know_pid(self, name: str, pid: int) -> None:
        """A host that joined stands: its PID 1, as labctl sees it."""
        self._pids[name] = pid

    def serve_more(self, actors: Collection[Actor]) -> None:
        """Start these services too and tell them what they are for."""
        self._serve_some(actors)

    # --- parts ---

    def socket(self, host: str) -> Path:
        """Where the host's first process listens."""
        return self._sockets / f"{host}.sock"

    def cgroup_of(self, host: str, daemon: bool) -> Path | None:
        """The cgroup of a host, or of its daemons, as the host sees it."""
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
        reclaim.await_reclaimed(list(self._ports.values()), DOWN_TIMEOUT_S)

    def _place_service(self, host: str, path: str) -> None:
        self.put(host, {path: self._binary})

    def _rss(self, host: str) -> int:
        assert self.cgroup is not None
        return memory_of(self.cgroup / f"{host}.d")


@contextlib.contextmanager
def up(topology: Topology, labhost: Path, cgroup: Path | None,
       actors: Collection[Actor]) -> Iterator[MininetTestbed]:
    """Stand the topology up, services running, every host heard by a neighbour. Raises LabDownError or OSError."""
    if missing := packages.missing_packages():
        raise LabDownError(f"lab: packages are missing; as root type: {packages.apt_line(missing)}")
    check_files(len(actors))
    testbed = MininetTestbed(topology, labhost, cgroup, actors)
    try:
        yield testbed
    finally:
        testbed.close()
