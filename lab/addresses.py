"""The address plan: prefixes of segments, addresses and MACs of hosts. Pure, and the same for the same document.

The router has the first address of each prefix and hosts follow in the order of the file. A segment without a prefix
gets the first of 10.1.0.0/16, 10.2.0.0/16, … (fd10:1::/64, …) that overlaps no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from lab.model import FAMILIES, Family, Segment
from lab.problems import Place, Report, shown
from lab.schema import HostDoc, SegmentDoc

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

MAX_SEGMENTS = 250  # the default plan has one octet for them, and so have the router's MACs
_UNUSABLE = tuple(ip_network(p) for p in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/16",
                                          "fe80::/10", "ff00::/8"))  # fmt: skip
_EXAMPLE: Mapping[Family, str] = {4: "10.10.1.0/24", 6: "fd10:1::/64"}


def mac(number: int) -> str:
    """The MAC of the host with this number in the topology, from 0: locally administered, unicast."""
    octets = (number + 1).to_bytes(4, "big")
    return "02:00:" + ":".join(f"{octet:02x}" for octet in octets)


# --- segments ---------------------------------------------------------------------------------


def segments(docs: Mapping[str, SegmentDoc], report: Report) -> dict[str, Segment] | None:
    """Each segment with both its prefixes; None, and problems in `report`, where they do not go together."""
    found, place = len(report.problems), ("topology", "segments")
    if len(docs) > MAX_SEGMENTS:
        report.add(place, f"{len(docs)} segments; write at most {MAX_SEGMENTS}")
        return None
    v4, v6 = (_prefixes(docs, family, report) for family in FAMILIES)
    for name, owner in _second_segments(docs):
        report.add((*place, name, "tenant"), f"tenant '{docs[name].tenant}' has segment '{owner}' and no router "
                   f"between segments; write another tenant, or put the hosts in '{owner}'")
    if len(report.problems) > found:
        return None
    return {name: _segment(name, v4[name], v6[name], doc.tenant or "") for name, doc in docs.items()}


def _segment(name: str, v4: Network, v6: Network, tenant: str) -> Segment:
    return Segment(name, str(v4), str(v6), str(v4.network_address + 1), str(v6.network_address + 1), tenant)


def _second_segments(docs: Mapping[str, SegmentDoc]) -> Iterator[tuple[str, str]]:
    """Segments whose tenant has one already, each with that one."""
    first: dict[str, str] = {}
    for name, doc in docs.items():
        if doc.tenant is not None and first.setdefault(doc.tenant, name) != name:
            yield name, first[doc.tenant]


def _prefixes(docs: Mapping[str, SegmentDoc], family: Family, report: Report) -> dict[str, Network]:
    stated: dict[str, Network] = {}
    for name, doc in docs.items():
        text = doc.v4 if family == 4 else doc.v6
        if text is not None:
            place = ("topology", "segments", name, f"v{family}")
            prefix = _prefix(text, family, place, report)
            overlapped = next((n for n, other in stated.items() if docs[n].tenant == doc.tenant and prefix is not None
                               and other.overlaps(prefix)), None)
            if overlapped is not None:
                report.add(
                    place, f"{text} overlaps {stated[overlapped]} of segment '{overlapped}'; write another prefix"
                )
            elif prefix is not None:
                stated[name] = prefix
    plan = (p for p in _default_plan(family) if not any(p.overlaps(other) for other in stated.values()))
    for name in docs:
        planned = stated.get(name) or next(plan, None)
        if planned is None:
            report.add(("topology", "segments", name), f"no prefix of the default plan is free; write its v{family}")
        else:
            stated[name] = planned
    return stated


def _default_plan(family: Family) -> Iterator[Network]:
    return (ip_network(f"10.{n}.0.0/16" if family == 4 else f"fd10:{n:x}::/64") for n in range(1, MAX_SEGMENTS + 1))


def _prefix(text: str, family: Family, place: Place, report: Report) -> Network | None:
    network = _network(text)
    remedy = f"write an IPv{family} prefix such as {_EXAMPLE[family]}"
    longest = 30 if family == 4 else 126
    if network is None or network.version != family or "/" not in text:
        report.add(place, f"{shown(text)} is not an IPv{family} prefix; {remedy}")
    elif str(network.network_address) != str(ip_address(text.partition("/")[0])):
        report.add(place, f"{text} has bits set beyond its length; write {network}")
    elif not 8 <= network.prefixlen <= longest:
        report.add(place, f"{text} cannot be a segment; write a length from /8 to /{longest}")
    elif any(bad.version == family and bad.overlaps(network) for bad in _UNUSABLE):
        report.add(place, f"{text} is reserved (loopback, link-local, multicast, …); {remedy}")
    else:
        return network
    return None


def _network(text: str) -> Network | None:
    try:
        return None if "%" in text else ip_network(text, strict=False)
    except ValueError:
        return None


# --- hosts ------------------------------------------------------------------------------------


def host_addresses(
    hosts: Mapping[str, tuple[str, HostDoc]], plan: Mapping[str, Segment], report: Report
) -> dict[str, tuple[str, str]]:
    """(IPv4, IPv6) address of each host. `hosts`: by full name, the entry of the file that it comes from."""
    by_family = [_addresses(hosts, plan, family, report) for family in FAMILIES]
    return {name: (by_family[0][name], by_family[1][name]) for name in hosts if all(name in a for a in by_family)}


def _addresses(
    hosts: Mapping[str, tuple[str, HostDoc]], plan: Mapping[str, Segment], family: Family, report: Report
) -> dict[str, str]:
    networks = {name: ip_network(s.v4 if family == 4 else s.v6) for name, s in plan.items()}
    taken = {(plan[n].tenant, networks[n].network_address + 1): f"the router of segment '{n}'" for n in networks}
    result = _stated(hosts, plan, networks, family, taken, report)
    free = {name: _usable(network) for name, network in networks.items()}
    full = set()
    for name, (_entry, doc) in hosts.items():
        if (doc.v4 if family == 4 else doc.v6) is not None or doc.segment in full:
            continue
        tenant = plan[doc.segment].tenant
        address = next((a for a in free[doc.segment] if (tenant, a) not in taken), None)
        if address is None:
            full.add(doc.segment)
            count = sum(other.segment == doc.segment for _, other in hosts.values())
            report.add(
                ("topology", "segments", doc.segment, f"v{family}"),
                f"{networks[doc.segment]} has no room for {count} hosts and the router; write a shorter prefix length",
            )
            continue
        taken[tenant, address] = f"host '{name}'"
        result[name] = str(address)
    return result


def _stated(
    hosts: Mapping[str, tuple[str, HostDoc]],
    plan: Mapping[str, Segment],
    networks: Mapping[str, Network],
    family: Family,
    taken: dict[tuple[str, Address], str],
    report: Report,
) -> dict[str, str]:
    """The addresses that the file itself gives, entered into `taken` as well."""
    result = {}
    for name, (entry, doc) in hosts.items():
        text = doc.v4 if family == 4 else doc.v6
        if text is None:
            continue
        network, tenant = networks[doc.segment], plan[doc.segment].tenant
        place = ("topology", "hosts", entry, f"v{family}")
        address = _address(text)
        if doc.count is not None:
            report.add(place, "an entry with count has many addresses; leave it out, they are given in order")
        elif address is None or address.version != family:
            report.add(place, f"{shown(text)} is not an IPv{family} address; write one in {network}, or leave it out")
        elif address not in network or address in _ends(network):
            report.add(place, f"{text} is no host's address in {network}; write one of it, or leave it out")
        elif (tenant, address) in taken:
            report.add(place, f"{text} belongs to {taken[tenant, address]}; write another, or leave it out")
        else:
            taken[tenant, address] = f"host '{name}'"
            result[name] = str(address)
    return result


def _address(text: str) -> Address | None:
    try:
        return None if "%" in text else ip_address(text)
    except ValueError:
        return None


def _usable(network: Network) -> Iterator[Address]:
    """Addresses of a segment for hosts: all but the first two (network, router) and IPv4's broadcast."""
    last = network.num_addresses - (2 if network.version == 4 else 1)
    return (network.network_address + offset for offset in range(2, last + 1))


def _ends(network: Network) -> tuple[Address, ...]:
    """What no host can have: the network's own address and, for IPv4, the broadcast address."""
    ends = (network.network_address, network.broadcast_address)
    return ends if network.version == 4 else ends[:1]
