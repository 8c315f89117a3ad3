"""The oracle: what a policy says of a flow, and every flow that could be tried. Pure.

Semantics (the enforcers are judged against them):

- Deny overrides allow, allow overrides the default; the order of rules never matters for the verdict. Which of several
  matching rules is *named* is deterministic: the first in file order among denies, else among allows.
- A process selector matches by executable path, so two declared names with one path are one identity; where the entry
  it names has a sha256, the content must be the same too. An undeclared executable matches no process selector.
- `user` on the target end is the user of the process that receives.
- The receiver of an ICMP echo is the kernel: a target selector that names a process or a user matches no icmp flow.
- `cidr` tests the address that the flow uses, so an IPv4 prefix matches no IPv6 flow.
- One verdict covers both directions of a flow: letting replies and related ICMP errors back is the enforcer's duty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from lab.model import (
    FAMILIES,
    STRANGER,
    Family,
    Flow,
    Host,
    Policy,
    Process,
    Proto,
    Rule,
    Scenario,
    Selector,
    Service,
    Topology,
    Verdict,
)

NOBODY = "nobody"  # the user of undeclared executables, and the "wrong user" of declared ones
NOBODY_UID = 65534
OWNER_KEYS = ("process", "user")  # selector keys about who owns the socket; all others are about the host
DEFAULT = "default"  # what a verdict names when no rule matched

# Above Linux's default ephemeral range (net.ipv4.ip_local_port_range = 32768 60999), so that no client's source
# port takes one; the scenario loader lets no process listen here.
WRONG_PORTS = range(61000, 65536)


class Offer(NamedTuple):
    """Something that can be tried at a host: a port that `process` has open, or icmp (process "", port 0)."""

    process: str
    proto: Proto
    port: int


# --- matching ---------------------------------------------------------------------------------


def decide(policy: Policy, flow: Flow, topology: Topology) -> Verdict:
    """What `policy` says of `flow`, and the rule that decided: deny over allow over default."""
    allowing = None
    for rule in policy.rules:
        if rule.verdict == "allow" and allowing is not None:
            continue
        if matches(rule, flow, topology):
            if rule.verdict == "deny":
                return Verdict(False, rule.name)
            allowing = rule.name
    return Verdict(policy.default == "allow", DEFAULT) if allowing is None else Verdict(True, allowing)


def matches(rule: Rule, flow: Flow, topology: Topology) -> bool:
    """Whether `rule` is about `flow`: its service and both its ends match."""
    if not any(service_matches(service, flow.proto, flow.port, flow.family) for service in rule.services):
        return False
    source, target = topology.hosts[flow.source], topology.hosts[flow.target]
    return selects(rule.source, source, topology, flow.process, flow.user, family=flow.family) and selects(
        rule.target, target, topology, flow.target_process, target_user(flow, topology), family=flow.family
    )


def service_matches(service: Service, proto: Proto, port: int, family: Family) -> bool:
    """Whether `service` takes in this protocol, port and family."""
    if service.family is not None and service.family != family:
        return False
    return service.proto == "any" or (service.proto == proto and service.low <= port <= service.high)


def selects(
    selector: Selector, host: Host, topology: Topology, process: str, user: str, *, family: Family | None = None
) -> bool:
    """Whether `selector` takes in this end: `process` under `user` on `host`.

    `process` is a declared name, STRANGER, or "" for the kernel. `family` None: a cidr may match either address.
    """
    return selects_host(selector, host, family) and selects_owner(selector, topology, process, user)


def selects_host(selector: Selector, host: Host, family: Family | None = None) -> bool:
    """Whether the keys of `selector` that are about hosts (labels, host, segment, cidr) take in `host`."""
    return all(
        _host_key_matches(key, values, host, family) for key, values in selector.keys.items() if key not in OWNER_KEYS
    )


def selects_owner(selector: Selector, topology: Topology, process: str, user: str) -> bool:
    """Whether the keys `process` and `user` of `selector`, where present, take in this owner of a socket."""
    users = selector.keys.get("user")
    if users is not None and user not in users:
        return False
    names = selector.keys.get("process")
    if names is None:
        return True
    owner = topology.processes.get(process)
    return owner is not None and any(same_identity(topology.processes[name], owner) for name in names)


def same_identity(named: Process, owner: Process) -> bool:
    """Whether a selector that names `named` means `owner`: one path, and one content where `named` gives a hash."""
    return named.path == owner.path and named.sha256 in (None, owner.sha256)


def names_owner(selector: Selector) -> bool:
    """Whether `selector` asks for a process or a user at all."""
    return any(key in selector.keys for key in OWNER_KEYS)


def target_user(flow: Flow, topology: Topology) -> str:
    """The user of the process that receives `flow`; "" where that is the kernel."""
    return owner_user(flow.target_process, topology)


def owner_user(process: str, topology: Topology) -> str:
    """The user that `process` runs as: as declared; `nobody` for an undeclared one; "" for the kernel ("")."""
    if not process:
        return ""
    declared = topology.processes.get(process)
    return NOBODY if declared is None else declared.user


@lru_cache(maxsize=4096)
def network(cidr: str) -> IPv4Network | IPv6Network:
    """The network that a selector's `cidr` names; a bare address is a network of one."""
    return ip_network(cidr, strict=False)


@lru_cache(maxsize=65536)
def within(address: str, cidr: str) -> bool:
    """Whether `address` lies in `cidr`; never across families."""
    return ip_address(address) in network(cidr)


def _host_key_matches(key: str, values: tuple[str, ...], host: Host, family: Family | None) -> bool:
    if key == "host":
        return host.name in values
    if key == "segment":
        return host.segment in values
    if key == "cidr":
        addresses = [host.address(f) for f in FAMILIES if family in (None, f)]
        return any(within(address, cidr) for address in addresses for cidr in values)
    return host.labels.get(key) in values


# --- what could be tried ----------------------------------------------------------------------


def wrong_port(topology: Topology, process: str) -> int:
    """The port that `process` (a declared name, or STRANGER) opens beside those it declares: nobody's service.

    Distinct for each process of the scenario. A denial there has a positive control, since something listens.
    """
    if process == STRANGER:
        return WRONG_PORTS[0]
    return WRONG_PORTS[1 + list(topology.processes).index(process)]


def wrong_ports(topology: Topology) -> Mapping[str, int]:
    """`wrong_port` of every declared process and of STRANGER."""
    return dict(zip((STRANGER, *topology.processes), WRONG_PORTS, strict=False))


def offered(topology: Topology) -> Mapping[str, tuple[Offer, ...]]:
    """What can be tried at each host: every declared port (ranges in full), every wrong port, and icmp once."""
    wrong = wrong_ports(topology)
    of_process = {name: tuple(_offers(process, wrong[name])) for name, process in topology.processes.items()}
    common = (Offer(STRANGER, "tcp", wrong[STRANGER]), Offer(STRANGER, "udp", wrong[STRANGER]), Offer("", "icmp", 0))
    return {
        host.name: tuple(offer for name in host.runs for offer in of_process[name]) + common
        for host in topology.hosts.values()
    }


def _offers(process: Process, wrong: int) -> Iterator[Offer]:
    seen = set()
    for service in process.listens:
        assert service.proto in ("tcp", "udp"), "the loader lets a process listen on tcp and udp only"
        for port in range(service.low, service.high + 1):
            if (service.proto, port) not in seen:
                seen.add((service.proto, port))
                yield Offer(process.name, service.proto, port)
    yield Offer(process.name, "tcp", wrong)
    yield Offer(process.name, "udp", wrong)


def sources(scenario: Scenario) -> Mapping[str, tuple[tuple[str, str], ...]]:
    """Who can try at each host, as (process, user): its processes as declared, and an undeclared one as `nobody`.

    Where a rule of the policy names a user, also each process under the wrong user `nobody`.
    """
    topology = scenario.topology
    users_matter = any("user" in end.keys for rule in scenario.policy.rules for end in (rule.source, rule.target))
    return {host.name: tuple(_actors(host, topology, users_matter)) for host in topology.hosts.values()}


def _actors(host: Host, topology: Topology, users_matter: bool) -> Iterator[tuple[str, str]]:
    for name in host.runs:
        user = topology.processes[name].user
        yield name, user
        if users_matter and user != NOBODY:
            yield name, NOBODY
    yield STRANGER, NOBODY


def flows(scenario: Scenario) -> tuple[Flow, ...]:
    """Every flow that could be tried: each ordered host pair (a host with itself too), each source, each offer.

    Both families. None from one tenant to another: to the source, the target's address is somebody else's, or nobody's.
    A flow of a host to itself goes to its own address.
    """
    return tuple(iter_flows(scenario))


def iter_flows(scenario: Scenario) -> Iterator[Flow]:
    """`flows`, one at a time, in the same order: for scenarios with millions of them."""
    offers, actors = offered(scenario.topology), sources(scenario)
    tenants = {name: scenario.topology.tenant(name) for name in scenario.topology.hosts}
    for source, who in actors.items():
        for target, offer in offers.items():
            if tenants[source] != tenants[target]:
                continue
            for process, user in who:
                for owner, proto, port in offer:
                    for family in FAMILIES:
                        yield Flow(source, process, user, target, owner, proto, port, family)
