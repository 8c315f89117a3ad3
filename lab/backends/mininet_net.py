"""Mininet's own network of hosts, bridges and links, with the slow and the intrusive parts replaced.

Mininet keeps the object model (Topo, Mininet, Node, Link: what its prompt and its tools know). Ours differ in three
ways: a host is held by `labhost init` in its own network, mount and PID namespaces instead of by a shell; links,
addresses and permanent neighbours are made in one `ip -batch` a namespace; and none of the host's sysctls are touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mininet.link
import mininet.net
import mininet.node
import mininet.topo

from lab.hosts import init_client
from lab.isolation import tool_env
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
    """A Mininet host held by `labhost init`; `params`: labhost (path of the binary), socket (its control)."""

    pid: int | None

    def startShell(self, mnopts: str | None = None) -> None:  # noqa: N802 (Mininet's name)
        argv = [str(self.params["labhost"]), "init", "--socket", str(self.params["socket"])]
        self.shell: subprocess.Popen[bytes] = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        self.socket = Path(self.params["socket"])

    def await_ready(self) -> None:
        """Wait until the host's namespaces stand. Raises OSError with what init said otherwise."""
        if self.pid is None:
            assert self.shell.stdout is not None
            line = self.shell.stdout.readline().split()
            if len(line) != 2 or line[0] != b"ready":
                raise OSError(f"host {self.name}: labhost init did not start (status {self.shell.poll()})")
            self.pid = int(line[1])

    def mountPrivateDirs(self) -> None:  # noqa: N802
        """Nothing: init has mounted them."""

    def cmd(self, *args: str, **_kwargs: Any) -> str:
        """Run a command in the host and return its output, as Mininet's prompt expects."""
        argv = args[0].split() if len(args) == 1 else [str(a) for a in args]
        done = init_client.run(self.socket, argv)
        return (done.stdout + done.stderr).decode(errors="replace")

    def terminate(self) -> None:
        self.shell.kill()
        self.shell.wait()


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


class PlannedIntf(mininet.link.Intf):  # type: ignore[misc]
    """An interface of a planned link: Mininet must not configure it by `ifconfig`."""

    def config(self, **_params: Any) -> dict[str, Any]:
        return {}


class LabNet(mininet.net.Mininet):  # type: ignore[misc]
    """Mininet over LabHost, LabBridge and PlannedLink."""

    def configHosts(self) -> None:  # noqa: N802
        for host in self.hosts:
            host.await_ready()



class LabTopo(mininet.topo.Topo):  # type: ignore[misc]
    """The scenario as a Mininet graph: a bridge a segment, a router between them, a host a host."""

    def build(self, topology: Topology, labhost: Path, sockets: Path) -> None:
        for name in topology.segments:
            self.addSwitch(bridge_of(topology, name), cls=LabBridge)
        self._host(topology.router, labhost, sockets / f"{topology.router}.sock")
        for name, host in topology.hosts.items():
            self._host(name, labhost, sockets / f"{name}.sock")
            self.addLink(name, bridge_of(topology, host.segment),
                         intfName1="eth0", intfName2=port_of(topology, name), addr1=host.mac)
        for index, name in enumerate(topology.segments):
            self.addLink(topology.router, bridge_of(topology, name), intfName1=f"eth{index}",
                         intfName2=f"r{index}", addr1=router_mac(topology, name))

    def _host(self, name: str, labhost: Path, socket: Path) -> None:
        self.addHost(name, cls=LabHost, labhost=labhost, socket=socket, ip=None)


def make_net(topology: Topology, labhost: Path, sockets: Path) -> LabNet:
    """Hosts up, every link, address, route and permanent neighbour in place; raises OSError naming what failed."""
    # Its one-time initialisation raises the machine's limits and sets eleven sysctls, which changes the figures.
    mininet.net.Mininet.inited = True
    topo = LabTopo(topology=topology, labhost=labhost, sockets=sockets)
    _sysctl({"net/ipv6/conf/default/disable_ipv6": "1", **{k: v for k, v in HOST_SYSCTLS.items() if "bridge" in k}})
    net = LabNet(topo=topo, host=LabHost, switch=LabBridge, link=PlannedLink, intf=PlannedIntf,
                 controller=None, build=True)
    for node in net.hosts:
        with netns(node.pid):
            _sysctl(HOST_SYSCTLS | (ROUTER_SYSCTLS if node.name == topology.router else {}))
    _batch(_links(topology, {node.name: node.pid for node in net.hosts}))
    for node in net.hosts:
        host = topology.hosts.get(node.name)
        with netns(node.pid):
            _batch(_host_config(topology, host) if host else _router_config(topology))
    return net


# --- the plan, pure --------------------------------------------------------------------------------


def bridge_of(topology: Topology, segment: str) -> str:
    """The bridge's interface name; short, since the kernel stops at 15 characters."""
    return f"s{list(topology.segments).index(segment)}"


def port_of(topology: Topology, host: str) -> str:
    """The name of a host's switch port in the run's own namespace."""
    return f"p{list(topology.hosts).index(host)}"


def router_mac(topology: Topology, segment: str) -> str:
    return f"02:fe:00:00:00:{list(topology.segments).index(segment) + 1:02x}"


def _links(topology: Topology, pids: dict[str, int]) -> Iterator[str]:
    for index, name in enumerate(topology.segments):
        bridge = f"s{index}"
        yield f"link add {bridge} type bridge mcast_snooping 0 forward_delay 0"
        yield f"link set {bridge} up"
        yield (f"link add r{index} type veth peer name eth{index} netns {pids[topology.router]}"
               f" address {router_mac(topology, name)}")
        yield f"link set r{index} master {bridge} up"
    bridges = {name: f"s{index}" for index, name in enumerate(topology.segments)}
    for index, host in enumerate(topology.hosts.values()):
        yield f"link add p{index} type veth peer name eth0 netns {pids[host.name]} address {host.mac}"
        yield f"link set p{index} master {bridges[host.segment]} up"


def _host_config(topology: Topology, host: Host) -> Iterator[str]:
    segment = topology.segments[host.segment]
    yield "link set eth0 up"
    for family in FAMILIES:
        yield f"addr add {host.address(family)}/{_length(segment, family)} dev eth0{' nodad' if family == 6 else ''}"
        yield f"route add default via {_gateway(segment, family)} dev eth0"
        yield _neighbour(_gateway(segment, family), router_mac(topology, segment.name), "eth0")
        for mate in topology.hosts.values():
            if mate.segment == host.segment and mate.name != host.name:
                yield _neighbour(mate.address(family), mate.mac, "eth0")


def _router_config(topology: Topology) -> Iterator[str]:
    device = {name: f"eth{index}" for index, name in enumerate(topology.segments)}
    for name, segment in topology.segments.items():
        yield f"link set {device[name]} up"
        for family in FAMILIES:
            nodad = " nodad" if family == 6 else ""
            yield f"addr add {_gateway(segment, family)}/{_length(segment, family)} dev {device[name]}{nodad}"
    for host in topology.hosts.values():
        for family in FAMILIES:
            yield _neighbour(host.address(family), host.mac, device[host.segment])


def _neighbour(address: str, mac: str, device: str) -> str:
    return f"neigh replace {address} lladdr {mac} dev {device} nud permanent"


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


def _batch(lines: Iterator[str]) -> None:
    done = subprocess.run(["ip", "-batch", "-"], input="\n".join(lines).encode(), capture_output=True,
                          env=tool_env(), check=False)
    if done.returncode:
        raise OSError(f"ip -batch: {done.stderr.decode(errors='replace').strip()[:400]}")
