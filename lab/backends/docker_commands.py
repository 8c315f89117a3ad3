"""Real programs in containers: started as their declared users, waited for, proved by what the host's wire shows.

A real program serves its declared ports. As a client it is played by the built-in service, which takes the place of its
executable once it runs, so that both have one identity: path and user.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lab.backends import docker_pods
from lab.backends.docker_specs import LABHOST
from lab.backends.served import LabDownError
from lab.hosts import init_client, roles
from lab.hosts.attempts import Actor, Attempt, Real
from lab.hosts.control import Fleet
from lab.model import FAMILIES, STRANGER, Outcome, Process, Topology
from lab.policy import NOBODY

if TYPE_CHECKING:
    from lab.backends.docker_lab import DockerTestbed

LISTEN_S = 60.0


class Commands:
    """The real programs of a topology. Of one that ends before it listens, what it said is told."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._ports = roles.real_ports(topology)
        self._images: dict[str, tuple[list[str], list[str]]] = {}  # by name: what it starts, its environment
        self._running: list[tuple[str, Process, init_client.Handle, int]] = []  # with its output

    def resolve(self, client: Any) -> None:
        """Look at every image that hosts are of. Raises LabDownError for one that the engine does not have."""
        import docker.errors

        for image, host in docker_pods.images(self._topology).items():
            try:
                config = client.images.get(image).attrs["Config"]
            except docker.errors.ImageNotFound:
                raise LabDownError(f"docker: {host}: the engine has no image {image}; "
                                   f"docker pull {image}, or build it") from None
            argv = [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]
            self._images[image] = (argv, list(config.get("Env") or ()))

    def start(self, testbed: DockerTestbed) -> None:
        """Start every one. Raises LabDownError naming what a container does not have."""
        for host in self._topology.hosts.values():
            for process in (self._topology.processes[name] for name in host.runs):
                if process.command is not None:
                    self._start(testbed, host.name, process.image or host.image, process)

    def _start(self, testbed: DockerTestbed, host: str, image: str | None, process: Process) -> None:
        default, variables = self._images.get(image or "", ([], []))
        argv = list(process.command or default)
        if not argv:
            raise LabDownError(f"docker: {host}: image {image} starts nothing; write the command of '{process.name}'")
        env = dict(text.partition("=")[::2] for text in variables) | dict(process.environment)
        said = os.memfd_create(f"{host}-{process.name}")
        try:
            home = testbed.home_of(host, process.path)
            handle = init_client.spawn(testbed.socket(home), argv, uid=process.uid, cwd="/", env=env,
                                       cgroup=testbed.cgroup_of(host, False), stdout=said, stderr=said)
        except init_client.SpawnError as err:
            why = str(err.strerror).removeprefix(f"{argv[0]}: ")
            raise LabDownError(f"docker: {host}: {why}; it has to be in the image") from None
        self._running.append((host, process, handle, said))

    def await_listening(self, testbed: DockerTestbed) -> None:
        """Return when each declared TCP port of theirs takes connections over IPv4. Raises LabDownError."""
        services = testbed.services
        services.know_real(self._real())
        waiting = [Attempt(Actor(host, STRANGER, NOBODY), "tcp", 4, self._topology.hosts[host].v4, port)
                   for host, ports in self._ports.items() for proto, port in ports if proto == "tcp"]
        deadline = time.monotonic() + LISTEN_S
        while waiting:
            self._fail_if_ended()
            got = services.probe(waiting, timeout_s=1.0)
            waiting = [a for a, found in zip(waiting, got, strict=True) if found.outcome is not Outcome.OPEN]
            if waiting and time.monotonic() > deadline:
                raise LabDownError(f"docker: nothing on {waiting[0].actor.host} takes connections at "
                                   f"{waiting[0].port}/tcp after {LISTEN_S:g} s{self._said(waiting[0].actor.host)}")
            time.sleep(0.05 if waiting else 0)  # a foreign program gives no event when it listens
        for host, process, handle, _said in self._running:
            self._check_identity(testbed, host, process, handle.pid)

    def _check_identity(self, testbed: DockerTestbed, host: str, process: Process, pid: int) -> None:
        """A program that is not what the scenario calls it would be judged as somebody else."""
        home = testbed.home_of(host, process.path)
        asked = init_client.run(testbed.socket(home), [LABHOST, "exe", str(pid)], uid=process.uid)
        is_now = asked.stdout.decode(errors="replace").strip()
        if asked.status or is_now != process.path:
            raise LabDownError(f"docker: {host}: '{process.name}' runs as {is_now or 'nothing'}, and the scenario says "
                               f"exe: {process.path}; write that path there")

    def prove(self, services: Fleet) -> None:
        """Have the observers capture what these ports answer."""
        orders: dict[Actor, Sequence[str]] = {}
        for host, ports in self._ports.items():
            if tcp := [str(port) for proto, port in ports if proto == "tcp"]:
                orders[Actor(host, roles.OBSERVER, "root")] = ("capture", ",".join(tcp))
        services.request_all(orders, 10.0)

    def close(self) -> None:
        for _host, _process, handle, said in self._running:
            handle.kill()
            os.close(said)
        self._running = []

    def _real(self) -> Real:
        hosts = self._topology.hosts
        ports = frozenset((hosts[host].address(family), proto, port) for host, found in self._ports.items()
                          for proto, port in found for family in FAMILIES)
        if not ports:
            return Real()
        addresses = {(name, family): host.address(family) for name, host in hosts.items() for family in FAMILIES}
        return Real(ports, addresses)

    def _fail_if_ended(self) -> None:
        for host, process, handle, _said in self._running:
            try:
                status = handle.wait(0)
            except TimeoutError:
                continue
            raise LabDownError(f"docker: {host}: {process.name} ended with status {status}{self._said(host)}")

    def _said(self, host: str) -> str:
        """The last line that a program on the host wrote, to put behind a message."""
        for where, _process, _handle, said in self._running:
            if where == host:
                text = os.pread(said, 1 << 16, max(0, os.fstat(said).st_size - (1 << 16))).decode(errors="replace")
                lines = text.strip().splitlines()
                return f": {lines[-1].strip()[:200]}" if lines else ""
        return ""
