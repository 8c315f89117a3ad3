"""The Docker backend: hosts are containers on user-defined networks, the router is one that joins them.

All that is made carries the run's id as a label and goes by that label alone (docker_left). A container's first process
is `labhost contain`: commands reach it over a unix socket in the run's own directory, so that everything above works as
on Mininet, and it ends when labctl does. It is granted what `docker_specs.capabilities` says, and no more.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sysconfig
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from lab import runs
from lab.backends import docker_left, docker_pods, docker_specs
from lab.backends.base import Completed, Usage
from lab.backends.docker_commands import Commands
from lab.backends.docker_engine import Engine
from lab.backends.docker_specs import ContainerSpec, NetworkSpec
from lab.backends.served import LabDownError, ServedTestbed, check_files
from lab.backends.switch import PORT_VARIABLE
from lab.hosts import init_client
from lab.hosts.attempts import Actor, Attempt
from lab.hosts.build import build
from lab.hosts.control import Fleet
from lab.isolation import ENTRY_DIR, RunIdentity
from lab.model import FAMILIES, STRANGER, Point, Topology

START_TIMEOUT_S = 120.0
_AT_ONCE = 6
_SITE = "/run/site"
_PSS = 'for p in $(cat "$0"); do cat /proc/$p/smaps_rollup 2>/dev/null; done; true'


class DockerTestbed(ServedTestbed):
    """Live hosts in containers. See `lab.backends.base.Testbed`."""

    def __init__(self, topology: Topology, engine: Engine, me: RunIdentity, actors: Collection[Actor],
                 demands: Mapping[str, Collection[str]]) -> None:
        self.topology, self.cgroup = topology, me.cgroup
        self._engine, self._run_id = engine, me.run_id
        self._control, self._labhost = docker_specs.CONTROL, build(static=True)
        self._client = engine.client()
        self._outside = runs.registry() / me.run_id  # ENTRY_DIR, as the engine sees it
        self._own = ENTRY_DIR / "hosts"
        self._image = f"labctl/host:{me.run_id}"
        self._lines: list[socket.socket] = []
        self._commands = Commands(topology)
        self._agents = {one.host for one in docker_specs.sidecars(topology, me.run_id, demands)}
        self._places = [one.host for one in docker_specs.places(me.run_id, demands)]
        self._ports: Mapping[str, str] = {}
        self._members = docker_pods.members(topology)
        self._hosts = {place: host for host, found in self._members.items() for place in found.values()}
        self._hosts |= {docker_specs.agent_name(host): host for host in topology.hosts}
        self._first: dict[str, str] = {}  # of each host its first process, as the machine counts, and its birth
        (ENTRY_DIR / docker_left.MARK).write_text(engine.path)  # before anything is made: by this it is found again
        self._own.mkdir(mode=0o700)
        self._make_cgroups()
        self.services = Fleet(ENTRY_DIR / "fleet.sock")  # control.sock is that of a standing lab
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(ENTRY_DIR / "alive.sock"))
        self._listener.listen(4096)
        try:
            self._stand_up(demands)
            self._bring_up(actors)
            self._await_router()
            if docker_specs.SWITCH in self._places:
                self._ports = self._find_ports()
        except BaseException:
            self.close()
            raise

    def put(self, host: str, files: Mapping[str, bytes]) -> None:
        """Place files (absolute paths on the host, mode 0755) as root."""
        for path, content in files.items():
            self._place(self.home_of(host, path), [path], content)

    def shadow(self, host: str, source: str, path: str) -> Completed:
        """Who executes `path` from now on gets the file `source`. Who runs there goes on as `path (deleted)`: a
        container may not mount."""
        return self.run(self.home_of(host, path), [docker_specs.LABHOST, "place", path, source])

    def socket(self, host: str) -> Path:
        """Where the host's first process listens."""
        return self._own / host / "init.sock"

    def agent_of(self, host: str) -> str:
        """Where what an arm puts on a host is put and run: a host of a foreign image has a container beside it."""
        name = docker_specs.agent_name(host)
        return name if name in self._agents else host

    def home_of(self, host: str, path: str) -> str:
        """A pod's processes are in containers of their own."""
        return self._members.get(host, {}).get(path, host)

    def cgroup_of(self, host: str, daemon: bool) -> Path | None:
        """The cgroup of a host, or of its daemons, as the host sees it."""
        host = self._hosts.get(host, host)
        return Path(docker_specs.CGROUP, f"{host}.d" if daemon else host) if self.cgroup else None

    def port_of(self, point: Point) -> str:
        """The machine's end of the host's link."""
        return self._ports[point.host]

    def place_of(self, point: Point) -> str:
        """Where a command at an enforcement point runs: on the host or beside it, or in a container for all ports."""
        place = docker_specs.place_of(point)
        return place if place in self._places else self.agent_of(point.host)

    def environment_of(self, point: Point) -> Mapping[str, str]:
        """What a command at an enforcement point is told of it."""
        if point.kind == "port":
            return {PORT_VARIABLE: self.port_of(point)}
        return {docker_specs.CONTAINER_VARIABLE: self._first[point.host]} if point.kind == "node" else {}

    def usage(self, memory: bool = True) -> Usage:
        """As of any testbed. What stands beside the hosts is an arm's daemon, and no host."""
        found = super().usage(memory)
        for spent in (found.host_cpu_s, found.host_system_s):
            for place in self._places:
                cast(dict[str, float], spent).pop(place, None)
        return found

    def pid(self, host: str) -> int:
        """0: the host's first process is in namespaces of the engine's; it is spoken to over its socket."""
        return 0

    def close(self) -> None:
        """End services, then containers; returns when the engine has removed all that is the run's."""
        self._commands.close()
        self.services.close()
        self._listener.close()
        try:  # while they live: what ends by itself meanwhile makes the engine do two things at once
            docker_left.remove(self._engine.inside, self._run_id, docker_left.coming(ENTRY_DIR))
        finally:
            for line in self._lines:
                line.close()
        (ENTRY_DIR / docker_left.MARK).unlink(missing_ok=True)
        self._client.close()

    # --- parts ---

    def _bring_up(self, actors: Collection[Actor]) -> None:
        """Real programs first: what stands in for them as clients takes the place of their executables afterwards."""
        later = {actor for actor in actors if (process := self.topology.processes.get(actor.process)) and process.real}
        self._serve_some(set(actors) - later)
        self._commands.start(self)
        self._commands.await_listening(self)
        self._serve_some(later)
        self._commands.prove(self.services)
        self._await_datagrams()

    def _names(self) -> list[str]:
        return [*super()._names(), *self._places]

    def _find_ports(self) -> dict[str, str]:
        """The machine's end of every host's link: behind it the host's bridge has heard the host's MAC."""
        import docker.errors

        try:
            found = {name: self._client.api.inspect_network(docker_specs.network_name(self._run_id, name))
                     for name in self.topology.segments}
        except docker.errors.DockerException as err:
            raise LabDownError(_said(err)) from None
        bridges = {docker_specs.bridge_name(one["Id"], one["Options"]): name for name, one in found.items()}
        done = init_client.run(self.socket(docker_specs.SWITCH), ["bridge", "-j", "fdb", "show"])
        heard = docker_specs.ports(json.loads(done.stdout or b"[]"), bridges, self.topology)
        if unheard := [name for name in self.topology.hosts if name not in heard]:
            raise LabDownError(f"docker: behind which port of the engine's bridge {unheard[0]} is cannot be found "
                               f"out: {done.stderr.decode(errors='replace').strip() or 'the bridge has not heard it'}")
        return heard

    def _place_service(self, host: str, path: str) -> None:
        self._place(self.home_of(host, path), [path, docker_specs.LABHOST], b"")

    def _place(self, host: str, words: list[str], content: bytes) -> None:
        done = init_client.run(self.socket(host), [docker_specs.LABHOST, "place", *words], input=content)
        if done.status:
            raise LabDownError(f"docker: {host}: {done.stderr.decode(errors='replace').strip()}")

    def _rss(self, host: str) -> int:
        """The host's own processes are not to be seen from here; it counts them itself."""
        done = self.run(self.agent_of(host), ["/bin/sh", "-c", _PSS, f"{self.cgroup_of(host, True)}/cgroup.procs"])
        return sum(int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith(b"Pss:")) * 1024

    def _stand_up(self, demands: Mapping[str, Collection[str]]) -> None:
        import docker.errors

        known = [name for name in docker_specs.sysctl_names() if Path("/proc/sys", name).exists()]
        made = docker_specs.containers(self.topology, self._run_id, demands, known)
        try:
            with self._making("image", self._image):
                self._client.api.import_image_from_data(
                    docker_specs.base_image(docker_specs.machine_links()), repository=self._image.partition(":")[0],
                    tag=self._run_id, changes=[f"LABEL {docker_left.LABEL}={self._run_id}"])
            bridged = bool(self._client.info().get("BridgeNfIptables"))
            networks = docker_specs.networks(self.topology, self._run_id)
            _all(lambda one: self._make_network(one, not bridged), networks)
            self._commands.resolve(self._client)
            _all(self._make_container, made)
            beside = docker_specs.sidecars(self.topology, self._run_id, demands)
            beside += docker_specs.places(self._run_id, demands) + docker_pods.specs(self.topology, self._run_id)
            _all(self._make_container, beside)
            made += beside
        except (docker.errors.DockerException, ValueError, OSError) as err:
            raise LabDownError(_said(err)) from None
        self._await_started({one.host: one.name for one in made})
        if docker_specs.NODE in self._places:
            self._first = {one.host: self._first_process(one.name) for one in made if one.host in self.topology.hosts}

    def _first_process(self, container: str) -> str:
        """The number is another's once the container has ended; with the birth it is nobody else's.

        Who is born when is asked where the machine's processes are to be seen, which we do not.
        """
        pid = int(self._client.api.inspect_container(container)["State"]["Pid"])
        birth = runs.birth(self.run(docker_specs.NODE, ["cat", f"/proc/{pid}/stat"]).stdout.decode(errors="replace"))
        if not pid or not birth:
            raise LabDownError(f"container {container} ended at once; docker logs {container} may say why")
        return f"{pid}:{birth}"

    def _make_network(self, spec: NetworkSpec, internal: bool) -> None:
        """A bridge of the engine's. An internal one has no way out. Where the machine's firewall sees bridged packets
        it would stop those on their way to the router: there the network is an ordinary one, without masquerade."""
        from docker.types import IPAMConfig, IPAMPool

        pools = [IPAMPool(subnet=subnet, gateway=gateway)
                 for subnet, gateway in zip(spec.subnets, spec.gateways, strict=True)]
        with self._making("network", spec.name):
            self._client.api.create_network(
                spec.name, driver="bridge", internal=internal, enable_ipv6=True, ipam=IPAMConfig(pool_configs=pools),
                options={"com.docker.network.bridge.enable_ip_masquerade": "false"}, labels=self._labels())

    def _make_container(self, spec: ContainerSpec) -> None:
        import docker.errors

        own = self._own / spec.host
        own.mkdir(mode=0o700)
        (own / "plan").write_text(spec.plan)
        try:
            self._create(spec)
        except docker.errors.APIError as err:
            if "unknown capability" not in str(err.explanation) or docker_specs.on_old_engine(spec) is spec:
                raise
            self._create(docker_specs.on_old_engine(spec))

    def _create(self, spec: ContainerSpec) -> None:
        api = self._client.api
        ends = {name: api.create_endpoint_config(ipv4_address=v4, ipv6_address=v6)
                for name, (v4, v6) in spec.addresses.items()}
        first, *others = spec.addresses or [spec.joins]
        writable = ("/run/host",) if spec.image else ("/opt", "/srv", "/run/host")
        with self._making("container", spec.name):
            made = api.create_container(
                spec.image or self._image, name=spec.name, hostname=spec.host if spec.addresses else None, user="0",
                labels=self._labels(), entrypoint=[docker_specs.LABHOST], working_dir="/",
                command=["contain", "--socket", f"{docker_specs.OWN}/init.sock", "--lifeline", docker_specs.LIFELINE,
                         "--name", spec.host, "--plan", f"{docker_specs.OWN}/plan", "--keep", str(spec.keep_bits)],
                networking_config=api.create_networking_config({first: ends[first]}) if ends else None,
                host_config=api.create_host_config(
                    network_mode=first, pid_mode=spec.among,
                    binds=self._binds(spec), cap_drop=["ALL"], cap_add=spec.capabilities,
                    mounts=self._pins(spec), security_opt=["no-new-privileges"], extra_hosts=dict(spec.known) or None,
                    sysctls=dict(spec.sysctls), cgroupns="host", pids_limit=-1,
                    tmpfs=dict.fromkeys(writable, "exec,mode=755")))
        for name in others:
            v4, v6 = spec.addresses[name]
            api.connect_container_to_network(made["Id"], name, ipv4_address=v4, ipv6_address=v6)
        api.start(made["Id"])

    def _binds(self, spec: ContainerSpec) -> list[str]:
        """What a container sees of the machine: tools, read-only, and of the run's directory what is its own."""
        shared = {str(build(static=True)): docker_specs.LABHOST}
        if not spec.image:
            shared |= {"/usr": "/usr", "/etc/alternatives": "/etc/alternatives", sysconfig.get_path("purelib"): _SITE}
        own = {self._outside / "hosts" / spec.host: docker_specs.OWN,
               self._outside / "fleet.sock": docker_specs.CONTROL,
               self._outside / "alive.sock": docker_specs.LIFELINE}
        if self.cgroup:
            own[self.cgroup] = docker_specs.CGROUP
        return [*(f"{source}:{target}:ro" for source, target in shared.items() if Path(source).exists()),
                *(f"{source}:{target}" for source, target in own.items())]

    def _pins(self, spec: ContainerSpec) -> list[Any]:
        """A bpf file system, mounted by the engine since the container may not. What is pinned there ends with it."""
        from docker.types import DriverConfig, Mount

        how = {"type": "bpf", "device": "bpf", "o": "mode=700,nosuid,nodev,noexec"}
        return [Mount(spec.pins, None, type="volume", no_copy=True, labels=self._labels(),
                      driver_config=DriverConfig("local", how))] if spec.pins else []

    def _making(self, kind: str, name: str) -> contextlib.AbstractContextManager[None]:
        return docker_left.making(ENTRY_DIR, kind, name)

    def _labels(self) -> dict[str, str]:
        return {docker_left.LABEL: self._run_id}

    def _await_started(self, waiting: dict[str, str]) -> None:
        """Return when every first process has said its name on its lifeline. Raises LabDownError with what one said."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while waiting:
            self._listener.settimeout(min(2.0, max(deadline - time.monotonic(), 0.001)))
            try:
                line, _ = self._listener.accept()
            except TimeoutError:
                for host, name in waiting.items():
                    self._fail_if_ended(host, name)
                if time.monotonic() > deadline:
                    raise LabDownError(f"docker: {', '.join(list(waiting)[:5])} did not start within "
                                       f"{START_TIMEOUT_S:g} s") from None
                continue
            self._lines.append(line)
            line.settimeout(5.0)
            waiting.pop(line.recv(128).decode().strip(), None)

    def _fail_if_ended(self, host: str, name: str) -> None:
        state = self._client.api.inspect_container(name)["State"]
        if state["Status"] in ("exited", "dead"):
            said = self._client.api.logs(name).decode(errors="replace").strip()[-300:]
            raise LabDownError(f"docker: {host} ended with status {state['ExitCode']}: {said or state['Error']}")

    def _await_router(self) -> None:
        """Packets from segment to segment pass the router, or we say which do not."""
        first = {host.segment: host for host in reversed(list(self.topology.hosts.values()))}
        names = [name for name in self.topology.segments if name in first]
        hellos = [Attempt(Actor(first[a].name, STRANGER, "nobody"), "icmp", family, first[b].address(family), 0)
                  for a, b in zip(names, names[1:] + names[:1], strict=True) if a != b for family in FAMILIES]
        for _ in range(5):
            seen = self.services.probe(hellos, timeout_s=1.0)
            hellos = [attempt for attempt, got in zip(hellos, seen, strict=True) if got.outcome != "OPEN"]
            if not hellos:
                return
        raise LabDownError(f"docker: {hellos[0].actor.host} does not reach {hellos[0].address} through the router; "
                           "the engine's machine filters bridged packets (net.bridge.bridge-nf-call-iptables)")


def _all(make: Callable[[Any], None], specs: Collection[Any]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(make, specs))


def _said(err: Exception) -> str:
    """What the engine said, in one line, and what to do where we know."""
    text = " ".join(str(getattr(err, "explanation", None) or err).split())
    remedy = ""
    if "overlaps" in text:
        remedy = "; another network of the engine has these addresses: write other prefixes in the scenario"
    return f"docker: {text}{remedy}" if not text.startswith("docker:") else text


@contextlib.contextmanager
def up(topology: Topology, engine: Engine, me: RunIdentity, actors: Collection[Actor],
       demands: Mapping[str, Collection[str]]) -> Iterator[DockerTestbed]:
    """Stand the topology up as containers, services running, every host heard. Raises LabDownError or OSError.

    `demands`: by host (or router), the features that the arms of the run need there.
    """
    check_files(len(actors) + len(topology.hosts))
    try:
        testbed = DockerTestbed(topology, engine, me, actors, demands)
    except docker_left.EngineGoneError as err:
        raise LabDownError(str(err)) from None
    try:
        yield testbed
    finally:
        try:
            testbed.close()
        except docker_left.EngineGoneError as err:
            raise LabDownError(f"{err}; what is left in it goes with: labctl clean") from None
