"""What the Docker backend asks the engine for: networks, containers and the base image of a topology. Pure.

A host is a container of one segment's network, with the scenario's own addresses; the router is one of all of them. The
base image holds next to nothing: a container of it sees the machine's /usr, read-only, so that a host has the very
tools that it has on Mininet, nothing is downloaded, and nothing of anybody's is copied.
"""

from __future__ import annotations

import io
import ipaddress
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lab.backends.mininet_net import HOST_SYSCTLS, ROUTER_SYSCTLS, bridge_of, router_mac
from lab.model import FAMILIES, Family, Feature, Host, Point, Segment, Topology

# capabilities(7), by number: what the first process of a container may keep.
CAPABILITIES: Mapping[str, int] = {
    "DAC_READ_SEARCH": 2, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8, "NET_ADMIN": 12, "NET_RAW": 13,
    "SYS_PTRACE": 19, "SYS_ADMIN": 21, "PERFMON": 38, "BPF": 39,
}  # fmt: skip
SERVE = frozenset({"SETGID", "SETUID", "KILL", "NET_RAW"})  # to be its users, to end them; to see echo requests arrive
START = frozenset({"NET_ADMIN", "SETPCAP"})  # until its network is as planned and the rest is given up
_OF_FEATURE: Mapping[str, frozenset[str]] = {
    "nftables": frozenset({"NET_ADMIN"}),
    "conntrack-events": frozenset({"NET_ADMIN"}),
    "nflog": frozenset({"NET_ADMIN"}),
    "sock-diag": frozenset({"NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"}),  # whose socket: in other users' /proc
    "cgroup-bpf": frozenset({"BPF", "PERFMON", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"}),  # and who it is
    "host-tc-bpf": frozenset({"BPF", "NET_ADMIN"}),
    "tc-bpf": frozenset({"BPF", "NET_ADMIN"}),
    "container-host": frozenset({"SYS_ADMIN"}),  # to enter a container's network, and be among its processes
}
_OWN = {"container-host": "hosts of this backend are machines of their own, and no containers of one"}
_FREE = frozenset({"python3", "iperf3", "cgroup2", "several-users", "clang", "libbpf", "bpf",
                   "btf"})  # there without a capability of their own
_CONNTRACK = {"net.netfilter.nf_conntrack_acct": "1", "net.netfilter.nf_conntrack_timestamp": "1"}

# Where hosts are guarded from that are not themselves a host; no host's name has parentheses.
SWITCH, NODE = "(switch)", "(node)"
SWITCH_PINS = "/run/switch/bpf"

# Where things are in a container.
OWN, CONTROL, LIFELINE, CGROUP, LABHOST = ("/run/lab/own", "/run/lab/control.sock", "/run/lab/alive.sock",
                                           "/run/lab/cgroup", "/run/lab/labhost")
PINS = "/run/lab/bpf"
CONTAINER_VARIABLE = "LABCTL_CONTAINER"  # tells a command on the machine which process is a container's first
_LAYOUT = ("dev", "etc", "etc/alternatives", "opt", "proc", "root", "run", "run/host", "run/lab", "run/site", "srv",
           "sys", "tmp", "usr", "var", "var/tmp")
_USERS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
_GROUPS = "root:x:0:\nnogroup:x:65534:\n"
_PROTOCOLS = "icmp 1\ntcp 6\nudp 17\nipv6-icmp 58\n"  # nft looks names up there
_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A segment as a bridge network. `gateways`: addresses for the engine's own end, which nobody uses as a way out."""

    segment: str
    name: str
    subnets: tuple[str, str]
    gateways: tuple[str, str]


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """A host or the router. `addresses`: by network's name, IPv4 and IPv6. `keep`: capabilities once it serves."""

    host: str
    name: str
    addresses: Mapping[str, tuple[str, str]]
    keep: frozenset[str]
    sysctls: Mapping[str, str]
    plan: str
    image: str | None = None
    known: Mapping[str, str] = field(default_factory=dict)  # names that it can look up, with IPv4 addresses
    pins: str = ""  # where it has a bpf file system of its own, in which an arm's programs outlive the arm's daemon
    beside: str = ""  # the name of the container whose network and processes it shares, instead of ones of its own
    outside: bool = False  # it is on the machine's own network, where the engine's bridges are, and nobody's host
    sees_all: bool = False  # it is among the machine's own processes

    @property
    def capabilities(self) -> list[str]:
        """What the engine has to grant at first."""
        return sorted(self.keep | (START if self.addresses else {"SETPCAP"}))

    @property
    def keep_bits(self) -> int:
        return sum(1 << CAPABILITIES[name] for name in self.keep)

    @property
    def among(self) -> str | None:
        """Whose processes it is among, as the engine calls it; None: its own."""
        return "host" if self.sees_all else f"container:{self.beside}" if self.beside else None

    @property
    def joins(self) -> str:
        """The network of one that has none of its own, as the engine calls it."""
        return "host" if self.outside else f"container:{self.beside}"


def capabilities(features: Collection[str]) -> frozenset[str]:
    """The least that a host needs whose arms need `features` there; none of them: what serving takes."""
    return SERVE.union(*(_OF_FEATURE.get(feature, frozenset()) for feature in features))


_SINCE_5_8 = frozenset({"BPF", "PERFMON"})  # what the kernel took out of SYS_ADMIN then, and grants with it still


def on_old_engine(spec: ContainerSpec) -> ContainerSpec:
    """The same container for an engine that does not know these capabilities' names; itself if it asks for none."""
    if not spec.keep & _SINCE_5_8:
        return spec
    return replace(spec, keep=spec.keep - _SINCE_5_8 | {"SYS_ADMIN"})


def pins(features: Collection[str]) -> str:
    """Where arms that need `features` keep programs in the kernel for a host; "" if they keep none."""
    return PINS if "cgroup-bpf" in features else ""


def missing(needs: Collection[Feature]) -> str | None:
    """Why an arm with these needs is not supported in containers, or None if it is."""
    lacking = [need for need in needs if need.name not in _OF_FEATURE and need.name not in _FREE]
    return "; ".join(f"{need.name}: a container of a lab is not given it ({need.why}); use --backend mininet"
                     for need in lacking) or None


def only_here(need: Feature) -> str | None:
    """Why no other backend has this feature, where it is one that containers alone have."""
    return f"{need.name}: {_OWN[need.name]} ({need.why}); use --backend docker" if need.name in _OWN else None


def networks(topology: Topology, run_id: str) -> list[NetworkSpec]:
    """One a segment, in the scenario's order. Raises ValueError where a segment has no address left for the engine."""
    taken = {address for host in topology.hosts.values() for address in (host.v4, host.v6)}
    return [NetworkSpec(name, network_name(run_id, name), (segment.v4, segment.v6),
                        (_spare(segment.v4, taken | {segment.gateway4}, name),
                         _spare(segment.v6, taken | {segment.gateway6}, name)))
            for name, segment in topology.segments.items()]


def network_name(run_id: str, segment: str) -> str:
    return f"{run_id}-{segment}"


def containers(topology: Topology, run_id: str, demands: Mapping[str, Collection[str]],
               known_sysctls: Collection[str]) -> list[ContainerSpec]:
    """The router, then every host. `demands`: by host, the features that arms need there; `known_sysctls`: of this
    kernel, as paths under /proc/sys; others are left out."""
    def sysctls(name: str, values: Mapping[str, str]) -> dict[str, str]:
        wanted = {key.replace("/", "."): value for key, value in values.items()}
        wanted |= {"net.ipv4.ping_group_range": "0 2147483647", "net.ipv4.ip_unprivileged_port_start": "0"}
        if "conntrack-events" in demands.get(name, ()):
            wanted |= _CONNTRACK
        return {key: value for key, value in wanted.items() if key.replace(".", "/") in known_sysctls}

    def spec(name: str, addresses: dict[str, tuple[str, str]], values: Mapping[str, str], text: str,
             image: str | None = None, foreign: bool = False) -> ContainerSpec:
        keep = SERVE if image else capabilities(demands.get(name, ()))
        return ContainerSpec(name, f"{run_id}-{name}", addresses, keep, sysctls(name, values), text, image,
                             names(topology) if image or foreign else {}, "" if image else pins(demands.get(name, ())))

    segments = topology.segments
    yours = {network_name(run_id, s.name): (s.gateway4, s.gateway6) for s in segments.values()}
    made = [spec(topology.router, yours, {**HOST_SYSCTLS, **ROUTER_SYSCTLS}, router_plan(topology))]
    for name, host in topology.hosts.items():
        mine = {network_name(run_id, host.segment): (host.v4, host.v6)}
        foreign = host.pod and any(topology.processes[process].image for process in host.runs)
        made.append(spec(name, mine, HOST_SYSCTLS, host_plan(topology, host), host.image, foreign))
    return made


def names(topology: Topology) -> dict[str, str]:
    """Every host by name, and the first of those that are alike by the name that they share."""
    found = {}
    for host in topology.hosts.values():
        found[host.name] = host.v4
        alike, _, number = host.name.rpartition("-")
        if number.isdigit() and alike:
            found.setdefault(alike, host.v4)
    return found


def sidecars(topology: Topology, run_id: str, demands: Mapping[str, Collection[str]]) -> list[ContainerSpec]:
    """Beside each host of a foreign image where an arm enforces: a container of the base image, which has the tools
    that the arm needs, in the host's network and among its processes. It has the arm's capabilities, not the host."""
    return [ContainerSpec(agent_name(name), f"{run_id}-{agent_name(name)}", {}, capabilities(demands[name]), {}, "",
                          pins=pins(demands[name]), beside=f"{run_id}-{name}")
            for name, host in topology.hosts.items() if host.image and name in demands]


def place_of(point: Point) -> str:
    """Where a point's commands run, as `demands` calls it: its host, or what stands beside all hosts."""
    return {"port": SWITCH, "node": NODE}.get(point.kind, point.host)


def places(run_id: str, demands: Mapping[str, Collection[str]]) -> list[ContainerSpec]:
    """What stands beside the hosts for arms that enforce outside of them, where there are any."""
    def spec(place: str, name: str, pins: str) -> ContainerSpec:
        return ContainerSpec(place, f"{run_id}.{name}", {}, capabilities(demands[place]), {}, "", pins=pins,
                             outside=True, sees_all=place == NODE)

    known = ((SWITCH, "switch", SWITCH_PINS), (NODE, "node", PINS))
    return [spec(place, name, pins) for place, name, pins in known if place in demands]


def bridge_name(network_id: str, options: Mapping[str, str]) -> str:
    """The interface that is a network's bridge: as it was asked to be called, else by the network's id."""
    return options.get("com.docker.network.bridge.name") or f"br-{network_id[:12]}"


def ports(heard: Iterable[Mapping[str, Any]], bridges: Mapping[str, str], topology: Topology) -> dict[str, str]:
    """By host, the port behind which its segment's bridge heard its MAC.

    `heard`: what `bridge -j fdb show` prints; `bridges`: segments by their bridges' interfaces.
    """
    hosts = {(host.segment, host.mac): host.name for host in topology.hosts.values()}
    found = {}
    for entry in heard:
        name = hosts.get((bridges.get(entry.get("master", ""), ""), entry["mac"]))
        if name is not None and entry.get("state") != "permanent":  # those are the ports' own addresses
            found[name] = str(entry["ifname"])
    return found


def agent_name(host: str) -> str:
    return f"{host}.agent"


def sysctl_names() -> list[str]:
    """Every sysctl that may be asked for, as a path under /proc/sys."""
    more = ["net/ipv4/ping_group_range", "net/ipv4/ip_unprivileged_port_start"]
    return [*HOST_SYSCTLS, *ROUTER_SYSCTLS, *more, *(key.replace(".", "/") for key in _CONNTRACK)]


def _spare(prefix: str, taken: Collection[str], segment: str) -> str:
    """The highest address of the prefix that is nobody's; of IPv6 from where engines can count to."""
    network = ipaddress.ip_network(prefix)
    last = min(network.num_addresses - 2, 0xFFFF)
    for offset in range(last, 0, -1):
        if (address := str(network[offset])) not in taken:
            return address
    raise ValueError(f"docker: segment '{segment}' has no address left for the engine in {prefix}; "
                     "write a shorter prefix length")


# --- what a container's first process does to its network (plan.h) ---------------------------------


def host_plan(topology: Topology, host: Host) -> str:
    """Its one interface: address, routers, and its whole segment as neighbours."""
    segment = topology.segments[host.segment]
    lines = [*_segment_lines(topology, segment), f"host {host.name} -",
             f"link eth0 {bridge_of(topology, segment.name)} - {host.mac}"]
    for family in FAMILIES:
        lines += [f"address eth0 {family} {host.address(family)} {_length(segment, family)}",
                  f"default eth0 {family} {_gateway(segment, family)}"]
    return "\n".join(lines) + "\n"


def router_plan(topology: Topology) -> str:
    """An interface a segment, eth0, eth1, … in the scenario's order, everybody as neighbours."""
    lines = [line for segment in topology.segments.values() for line in _segment_lines(topology, segment)]
    lines.append(f"host {topology.router} -")
    for index, (name, segment) in enumerate(topology.segments.items()):
        lines.append(f"link eth{index} {bridge_of(topology, name)} - {router_mac(topology, name)}")
        lines += [f"address eth{index} {family} {_gateway(segment, family)} {_length(segment, family)}"
                  for family in FAMILIES]
    return "\n".join(lines) + "\n"


def _segment_lines(topology: Topology, segment: Segment) -> Iterator[str]:
    bridge = bridge_of(topology, segment.name)
    yield f"segment {bridge}"
    yield f"member {bridge} {segment.gateway4} {segment.gateway6} {router_mac(topology, segment.name)}"
    for host in topology.hosts.values():
        if host.segment == segment.name:
            yield f"member {bridge} {host.v4} {host.v6} {host.mac}"


def _gateway(segment: Segment, family: Family) -> str:
    return segment.gateway4 if family == 4 else segment.gateway6


def _length(segment: Segment, family: Family) -> int:
    return ipaddress.ip_network(segment.v4 if family == 4 else segment.v6).prefixlen


# --- the base image --------------------------------------------------------------------------------


def base_image(links: Mapping[str, str]) -> bytes:
    """The base image's file system as a tar: directories, `links` (name → target), two lines of users, protocols."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in _LAYOUT:
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name in ("tmp", "var/tmp") else 0o755
            tar.addfile(info)
        for name, target in sorted(links.items()):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
        for name, text in (("etc/passwd", _USERS), ("etc/group", _GROUPS), ("etc/protocols", _PROTOCOLS)):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text), 0o644
            tar.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def machine_links(root: Path = Path("/")) -> dict[str, str]:
    """The links that lead from / into /usr on this machine (`bin` → `usr/bin`, …)."""
    return {name: str((root / name).readlink()) for name in _LINKS if (root / name).is_symlink()}
