"""Mininet's own network of hosts, bridges and links, with the slow and the intrusive parts replaced.

Mininet keeps the object model (Topo, Mininet, Node, Link: what its prompt and its tools know). Ours differ in three
ways: a host is a first process in its own network, mount and PID namespaces instead of a shell; all hosts are made and
wired at once, in parallel, by one `labhost hosts` (netlink, no command run); and none of the machine's sysctls are
touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mininet.link
import mininet.net
import mininet.node
import mininet.topo

from lab.hosts import init_client
from lab.model import FAMILIES, Family, Host, Segment, Topology

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

# Set alike in every host, under every arm, and recorded with the result. Values with their reasons:
HOST_SYSCTLS: dict[str, str] = {
    "net/ipv6/conf/all/accept_dad": "0",  # duplicate detection holds an address for about 2 s
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/all/disable_ipv6": "0",
    # (ping_group_range and ip_unprivileged_port_start are set by labhost init: host.c)
    "net/ipv4/icmp_ratelimit": "0",  # "unreachable" must come each time, or a refusal reads as a timeout
    "net/ipv4/icmp_ratemask": "0",
    "net/ipv6/icmp/ratelimit": "0",
    "net/bridge/bridge-nf-call-iptables": "0",  # the default in a new namespace is 1 and costs 6 %
    "net/bridge/bridge-nf-call-ip6tables": "0",
    "net/bridge/bridge-nf-call-arptables": "0",
}
ROUTER_SYSCTLS: dict[str, str] = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
}


class LabHost(mininet.node.Host):  # type: ignore[misc]
    """A Mininet host whose first process takes commands at `params["socket"]`; it has a `pid` once the net is built."""

    pid: int | None

    def startShell(self, mnopts: str | None = None) -> None:  # noqa: N802 (Mininet's name)
        """Nothing yet: the net makes all its hosts at once."""
        self.socket = Path(self.params["socket"])

    def mountPrivateDirs(self) -> None:  # noqa: N802
        """Nothing: init has mounted them."""

    def cmd(self, *args: str, **_kwargs: Any) -> str:
        """Run a command in the host and return its output, as Mininet's prompt expects."""
        argv = args[0].split() if len(args) == 1 else [str(a) for a in args]
        done = init_client.run(self.socket, argv)
        return (done.stdout + done.stderr).decode(errors="replace")

    def terminate(self) -> None:
        """Kill the host's first process, and by that all others; nobody waits here."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.pid = None


class LabBridge(mininet.node.Switch):  # type: ignore[misc]
    """A Linux bridge in the run's own namespace. It needs no shell."""

    def startShell(self, mnopts: str | None = None) -> None:  # noqa: N802
        self.pid = os.getpid()

    def cmd(self, *args: str, **_kwargs: Any) -> str:
        """Nothing: a bridge has no shell; Mininet would bring its loopback up with ifconfig."""
        return ""

    def start(self, controllers: object) -> None:
        """Nothing: the bridge was made with the links, in one batch."""

    def stop(self, deleteIntfs: bool = True) -> None:  # noqa: N803
        """Nothing: the bridge goes with the run's namespace."""

    def terminate(self) -> None:
        """Nothing to end."""


class PlannedLink(mininet.link.Link):  # type: ignore[misc]
    """A veth pair that is planned here and made later, with all others, in one batch."""

    @classmethod
    def makeIntfPair(cls, *args: Any, **kwargs: Any) -> None:  # noqa: N802
        """Nothing yet."""

    def delete(self) -> None:
        """Nothing: the pair goes with its namespaces."""


HOSTS_TIMEOUT_S = 120.0  # a thousand stand within seconds; whoever is later hangs


class PlannedIntf(mininet.link.Intf):  # type: ignore[misc]
    """An interface of a planned link: Mininet must not configure it by `ifconfig`."""

    def config(self, **_params: Any) -> dict[str, Any]:
        return {}


class LabNet(mininet.net.Mininet):  # type: ignore[misc]
    """Mininet over LabHost, LabBridge and PlannedLink. `plan` is the text that `labhost hosts` reads (plan.h)."""

    def __init__(self, *, labhost: Path, plan: str, **params: Any) -> None:
        self._herd: subprocess.Popen[bytes] | None = None
        self._labhost, self._plan = labhost, plan
        super().__init__(**params)

    def configHosts(self) -> None:  # noqa: N802
        """Make and wire every host. Raises OSError naming the host that could not be, and why."""
        said = os.fdopen(os.memfd_create("labhost-hosts"), "w+b")  # not a pipe, which nobody would read later on
        with said:
            self._herd = subprocess.Popen([str(self._labhost), "hosts"], stdin=subprocess.PIPE,
                                          stdout=subprocess.PIPE, stderr=said)
            assert self._herd.stdin is not None
            assert self._herd.stdout is not None
            late = threading.Timer(HOSTS_TIMEOUT_S, self._herd.kill)
            late.start()
            with contextlib.suppress(BrokenPipeError), self._herd.stdin:  # it says itself why it would not read
                self._herd.stdin.write(self._plan.encode())
            words = []
            for line in self._herd.stdout:
                words.append(line.split())
                if words[-1] == [b"ready"]:
                    break
            late.cancel()
            if not words or words[-1] != [b"ready"]:
                status = self._herd.wait()
                said.seek(0)
                why = said.read().decode(errors="replace").strip().splitlines()
                who = f"host {words[-1][1].decode()}: " if words and words[-1][0] == b"failed" else ""
                ended = f"labhost hosts ended with status {status}" if status != -signal.SIGKILL else \
                    f"the hosts did not stand within {HOSTS_TIMEOUT_S:g} s, or were killed"
                raise OSError(f"{who}{'; '.join(why[:3]) or ended}")
        for _host, name, pid in words[:-1]:
            self[name.decode()].pid = int(pid)

    def stop(self) -> None:
        """End all hosts; returns when their processes are gone."""
        super().stop()
        if self._herd is not None:
            self._herd.wait()


class LabTopo(mininet.topo.Topo):  # type: ignore[misc]
    """The scenario as a Mininet graph: a bridge a segment, a router between them, a host a host."""

    def build(self, topology: Topology, sockets: Path) -> None:
        for name in topology.segments:
            self.addSwitch(bridge_of(topology, name), cls=LabBridge)
        self._host(topology.router, sockets / f"{topology.router}.sock")
        for index, (name, host) in enumerate(topology.hosts.items()):  # port_of, without a search for each
            self._host(name, sockets / f"{name}.sock")
            self.addLink(name, bridge_of(topology, host.segment),
                         intfName1="eth0", intfName2=f"p{index}", addr1=host.mac)
        for index, name in enumerate(topology.segments):
            if not topology.segments[name].tenant:
                self.addLink(topology.router, bridge_of(topology, name), intfName1=f"eth{index}",
                             intfName2=f"r{index}", addr1=router_mac(topology, name))

    def _host(self, name: str, socket: Path) -> None:
        self.addHost(name, cls=LabHost, socket=socket, ip=None)


def make_net(topology: Topology, labhost: Path, sockets: Path) -> LabNet:
    """Hosts up, every link, address, route and permanent neighbour in place; raises OSError naming what failed."""
    # Its one-time initialisation raises the machine's limits and sets eleven sysctls, which changes the figures.
    mininet.net.Mininet.inited = True
    _sysctl({"net/ipv6/conf/default/disable_ipv6": "1", **{k: v for k, v in HOST_SYSCTLS.items() if "bridge" in k}})
    return LabNet(labhost=labhost, plan="\n".join(plan(topology, sockets)),
                  topo=LabTopo(topology=topology, sockets=sockets), host=LabHost, switch=LabBridge, link=PlannedLink,
                  intf=PlannedIntf, controller=None, build=True)


# --- the plan, pure --------------------------------------------------------------------------------


def bridge_of(topology: Topology, segment: str) -> str:
    """The bridge's interface name; short, since the kernel stops at 15 characters."""
    return f"s{list(topology.segments).index(segment)}"


def port_of(topology: Topology, host: str) -> str:
    """The name of a host's switch port in the run's own namespace."""
    return f"p{list(topology.hosts).index(host)}"


def router_mac(topology: Topology, segment: str) -> str:
    return f"02:fe:00:00:00:{list(topology.segments).index(segment) + 1:02x}"


def plan(topology: Topology, sockets: Path) -> Iterator[str]:
    """The lines that `labhost hosts` reads: see plan.h. A host's neighbours are its whole segment and the router."""
    yield from _sysctl_lines(HOST_SYSCTLS)
    for name, segment in topology.segments.items():
        yield f"segment {bridge_of(topology, name)}"
        if not segment.tenant:
            yield (f"member {bridge_of(topology, name)} {segment.gateway4} {segment.gateway6}"
                   f" {router_mac(topology, name)}")
    bridges = {name: bridge_of(topology, name) for name in topology.segments}
    for host in topology.hosts.values():
        yield f"member {bridges[host.segment]} {host.v4} {host.v6} {host.mac}"
    yield f"host {topology.router} {sockets / topology.router}.sock"
    yield from _sysctl_lines(ROUTER_SYSCTLS)
    for index, (name, segment) in enumerate(topology.segments.items()):
        if segment.tenant:
            continue  # its hosts have nobody who would carry a packet to another network
        yield f"link eth{index} {bridges[name]} r{index} {router_mac(topology, name)}"
        for family in FAMILIES:
            yield f"address eth{index} {family} {_gateway(segment, family)} {_length(segment, family)}"
    lengths = {(s.name, family): _length(s, family) for s in topology.segments.values() for family in FAMILIES}
    for index, host in enumerate(topology.hosts.values()):
        yield from _host_lines(host, topology.segments[host.segment], bridges[host.segment], f"p{index}",
                               sockets / f"{host.name}.sock", lengths)


def plan_of(topology: Topology, name: str, port: str, socket: Path) -> Iterator[str]:
    """The lines for one host of `topology` that joins a lab which stands; `port`: the switch side of its link."""
    host = topology.hosts[name]
    segment, bridge = topology.segments[host.segment], bridge_of(topology, host.segment)
    yield from _sysctl_lines(HOST_SYSCTLS)
    yield f"standing {bridge}"
    if not segment.tenant:
        yield f"member {bridge} {segment.gateway4} {segment.gateway6} {router_mac(topology, host.segment)}"
    for mate in topology.hosts.values():
        if mate.segment == host.segment:
            yield f"member {bridge} {mate.v4} {mate.v6} {mate.mac}"
    lengths = {(segment.name, family): _length(segment, family) for family in FAMILIES}
    yield from _host_lines(host, segment, bridge, port, socket, lengths)


def _host_lines(host: Host, segment: Segment, bridge: str, port: str, socket: Path,
                lengths: Mapping[tuple[str, Family], int]) -> Iterator[str]:
    yield f"host {host.name} {socket}"
    yield f"link eth0 {bridge} {port} {host.mac}"
    for family in FAMILIES:
        yield f"address eth0 {family} {host.address(family)} {lengths[segment.name, family]}"
        if not segment.tenant:
            yield f"default eth0 {family} {_gateway(segment, family)}"


def _sysctl_lines(values: dict[str, str]) -> Iterator[str]:
    return (f"sysctl {key} {value}" for key, value in values.items())


def _gateway(segment: Segment, family: Family) -> str:
    return segment.gateway4 if family == 4 else segment.gateway6


def _length(segment: Segment, family: Family) -> int:
    return ipaddress.ip_network(segment.v4 if family == 4 else segment.v6).prefixlen


# --- the rim ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def netns(pid: int) -> Iterator[None]:
    """Run the block in the network namespace of `pid`. Only this thread moves, and it comes back."""
    with Path("/proc/thread-self/ns/net").open() as here, Path(f"/proc/{pid}/ns/net").open() as there:
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(here.fileno())


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        err = ctypes.get_errno()
        raise OSError(err, f"setns: {os.strerror(err)}")


def _sysctl(values: dict[str, str]) -> None:
    for key, value in values.items():
        with contextlib.suppress(FileNotFoundError):  # a kernel without the feature has nothing to switch off
            Path("/proc/sys", key).write_text(value)
