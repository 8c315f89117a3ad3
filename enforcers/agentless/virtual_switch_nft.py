"""The virtual switch on a kernel that runs no program of ours: br_netfilter shows bridged packets to nftables.

One rule set for the whole switch, on what it forwards; each of its bridges tracks connections in a zone of its own, so
a flow across segments is judged at either end of its way. At every host's port, before the bridge, a chain of its own
drops what the host sends in another's name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import replace

from enforcers.agent.bundle import agent_plan
from enforcers.agent.records import sightings
from enforcers.agentless.chokepoint import forwarding
from enforcers.agentless.ports import comes_by, guarded
from enforcers.base import Resolver, Services, effective
from enforcers.nft import DROP, Hook, Lookup, Question, ruleset
from lab.model import FAMILIES, Deployment, Feature, Flow, Host, Native, Point, PointPlan, Policy, Sighting, Topology

DIRECTORY = "/run/switch/nft"
_SCRIPT, _WHOLE = f"{DIRECTORY}/switch.sh", "table inet "
_BETWEEN_HOSTS = Services((), (), True)
# Neighbour discovery and the like cross a bridge as they cross a cable; who sends what is settled at the ports.
_DISCOVERY = (
    "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, "
    "mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept"
)
# Zones before fragments are put together (-400), so that those of two bridges never mix. Enforcement begins with the
# last line and ends with the first: whatever is bridged meets all of it or nothing.
_SWITCH = """#!/bin/sh
# Show what the bridges here forward to nftables (up), or no longer (down).
set -eu
shown() { sysctl -qw net.bridge.bridge-nf-call-iptables="$1" net.bridge.bridge-nf-call-ip6tables="$1"; }
case "$1" in
up)
    zones= number=0
    for bridge in $(ip -o link show type bridge | cut -d: -f2); do
        number=$((number + 1))
        zones="$zones$bridge : $number, "
    done
    nft -f - <<END
table inet labctl_zones
delete table inet labctl_zones
table inet labctl_zones {
    chain prerouting {
        type filter hook prerouting priority -450; policy accept;
        ct zone set iifname map { $zones }
    }
}
END
    sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0
    shown 1 ;;
down)
    shown 0
    sysctl -qw net.netfilter.nf_conntrack_tcp_loose=1
    nft delete table inet labctl_zones 2>/dev/null || true ;;
ready)
    test "$(cat /proc/sys/net/bridge/bridge-nf-call-iptables)" = 1
    nft list table inet labctl_zones >/dev/null ;;
esac
"""


class VirtualSwitchNft:
    """Firewall at the switch by br_netfilter and nftables, anti-spoofing at every port; where BPF is missing."""

    name = "virtual-switch-nft"
    stops_spoofing = True  # at the port, before the bridge: MAC, ARP, neighbour discovery, source address

    def needs(self) -> tuple[Feature, ...]:
        return (
            Feature("nftables", "the policy is enforced in nftables maps at the switch"),
            Feature("nft-netdev", "what a host sends in another's name is dropped at its port"),
            Feature("br-netfilter", "what a bridge forwards is shown to nftables"),
            Feature("conntrack-events", "flow records come from connection tracking"),
            Feature("nflog", "denied packets are reported through NFLOG"),
            Feature("python3", "the collector at the switch is a Python 3.11 program without dependencies"),
        )

    def compile(self, policy: Policy, topology: Topology) -> Native:
        """One rule set for the whole switch, told with the first port; what each host may say, with its own."""
        reduced, approximations = effective(policy)
        lookup = _lookup(Resolver(reduced, topology), topology)
        original = Question(lookup, "{ip} saddr . {ip} daddr", "th dport")
        reply = Question(lookup, "{ip} daddr . {ip} saddr", "th sport")
        whole = ruleset([lookup], [Hook("forward", "forward", original, reply, DROP, (_DISCOVERY,))], "enforce")
        rules = {Point("port", host.name): _guard(number, host)
                 for number, host in enumerate(topology.hosts.values()) if not host.external}
        if rules:
            rules[next(iter(rules))] += whole
        return Native(rules, reduced, approximations, lookup.count)

    def render(self, native: Native, topology: Topology) -> Deployment:
        """Its chain at every port; with the first, the rules of the whole switch and a daemon. Nothing on any host."""
        return {point: _plan(point, *text.partition(_WHOLE)) for point, text in native.rules.items()}

    def covers(self, flow: Flow, topology: Topology) -> bool:
        """The flow leaves its host, and one of its ends is at a port of ours: hosts outside of the site are not."""
        return comes_by(flow, topology)

    def sightings(self, point: Point, lines: Iterable[bytes]) -> Iterable[Sighting]:
        """Every flow that a bridge tracked, and every packet that was denied; all told at the first port."""
        return sightings(point, lines)


def _lookup(resolver: Resolver, topology: Topology) -> Lookup:
    lookup = Lookup("pair", 2, resolver.policy.default == "allow")
    site = {host.name for host in guarded(topology)}
    for source in topology.hosts.values():
        for target in topology.hosts.values():
            if source is not target:
                for family in FAMILIES:
                    ours = source.name in site or target.name in site
                    services = resolver.services(source, target, family) if ours else _BETWEEN_HOSTS
                    lookup.add([source.address(family), target.address(family)], services, family)
    return lookup


# --- one port --------------------------------------------------------------------------------------


def _guard(number: int, host: Host) -> str:
    """What `host` may send, as a table of its port (`$port`): in its own name alone, by any protocol."""
    table = f"table netdev labctl_port_{number}"
    return "\n".join([table, f"delete {table}", f"{table} {{", *(f"\t{line}" for line in _chains(host)), "}", ""])


def _chains(host: Host) -> Iterator[str]:
    own, mac = f"{{ {host.v6}, {link_local(host.mac)} }}", host.mac.replace(":", "")
    targets = f"{{ {', '.join(_number(address) for address in (host.v6, link_local(host.mac)))} }}"
    # Without options (24 bytes), or with one alone: whose link address, 1 in a solicitation, 2 in an advertisement.
    for name, kind in (("solicit", 1), ("advert", 2)):
        yield f"chain {name} {{"
        if name == "advert":
            yield f"\t@th,64,128 != {targets} drop"
        yield f"\tip6 saddr {own} ip6 length 24 accept"
        yield f"\tip6 saddr {own} ip6 length 32 @th,192,16 0x{kind:02x}01 @th,208,48 0x{mac} accept"
        if name == "solicit":  # for itself, before it has an address; without or with a nonce (RFC 7527)
            yield f"\tip6 saddr :: ip6 length 24 @th,64,128 {targets} accept"
            yield f"\tip6 saddr :: ip6 length 32 @th,64,128 {targets} @th,192,8 14 accept"
        yield "\tdrop"
        yield "}"
    yield "chain ingress {"
    yield "\ttype filter hook ingress device $port priority -500; policy drop;"
    yield f"\tether saddr != {host.mac} drop"
    yield f"\tip saddr {host.v4} accept"
    yield "\ticmpv6 type { nd-router-advert, nd-redirect } drop"
    yield "\ticmpv6 type nd-neighbor-solicit goto solicit"
    yield "\ticmpv6 type nd-neighbor-advert goto advert"
    yield f"\tip6 saddr {own} accept"
    yield "\tip6 saddr :: icmpv6 type { nd-router-solicit, mld-listener-report, mld2-listener-report } accept"
    yield f"\tarp saddr ether {host.mac} arp saddr ip {{ 0.0.0.0, {host.v4} }} accept"
    yield "}"


def link_local(mac: str) -> str:
    """The address that a host makes of its MAC (RFC 4291, appendix A)."""
    packed = bytes.fromhex(mac.replace(":", ""))
    interface = bytes([packed[0] ^ 2]) + packed[1:3] + b"\xff\xfe" + packed[3:]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + b"\0" * 6 + interface))


def _number(address: str) -> str:
    return f"0x{int(ipaddress.IPv6Address(address)):032x}"


def _plan(point: Point, guard: str, mark: str, whole: str) -> PointPlan:
    """The port's own chain; with the whole rule set (if `mark`), also what there is once for the switch."""
    place = f"{DIRECTORY}/{point.host}.nft"
    table = guard.partition("\n")[0].removeprefix("table ")
    load = ("/bin/sh", "-c", f'nft -D "port=$LABCTL_PORT" -f {place}')
    gone = ("/bin/sh", "-c", f"nft delete table {table} 2>/dev/null || true")
    port = PointPlan(files={place: guard.encode()}, up=(load,), ready=("nft", "list", "table", *table.split()),
                     update=(load,), collect=(), down=(gone,))
    if not mark:
        return port
    daemon = agent_plan("router", mark + whole, forwarding("enforce"), DIRECTORY)
    ready = f"{' '.join(daemon.ready)} && /bin/sh {_SCRIPT} ready && {' '.join(port.ready)} >/dev/null"
    return replace(
        port, files={**port.files, **daemon.files, _SCRIPT: _SWITCH.encode()},
        up=(load, *daemon.up, ("/bin/sh", _SCRIPT, "up")), ready=("/bin/sh", "-c", ready),
        update=(load, *daemon.update), collect=daemon.collect,
        down=(("/bin/sh", _SCRIPT, "down"), *daemon.down, gone))
