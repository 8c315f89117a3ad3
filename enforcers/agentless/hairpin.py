"""The hairpin: a chokepoint that traffic within a segment has to cross as well, by isolated ports and proxy ARP.

As private VLANs (RFC 5517) with local proxy ARP: the switch lets no host's port speak to another's, and the router
answers for every host of the segment with its own link address (proxy_arp_pvlan; proxy NDP, RFC 4389, for IPv6), so
that what stays in the segment goes up to the router and back down by the same interface. What a host says to itself
never leaves it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from enforcers.agentless.chokepoint import Chokepoint
from lab.model import Deployment, Feature, Host, Native, Point, PointPlan, Policy, Topology

_SWITCH, _NEIGHBOURS, _RULES = (f"/run/host/hairpin.{what}" for what in ("conf", "neighbours", "nft"))
_ISOLATE, _JOIN = (("/bin/sh", "-c", f'bridge link set dev "$LABCTL_PORT" isolated {word}') for word in ("on", "off"))
_SHOWN = 'bridge -d link show dev "$LABCTL_PORT" | grep -q "isolated on"'
_ISOLATED = PointPlan(files={}, up=(_ISOLATE,), ready=("/bin/sh", "-c", _SHOWN), update=(_ISOLATE,), collect=(),
                      down=(_JOIN,))
# To go back out by the interface that it came in by makes the kernel tell the sender of a shorter way, which is none
# here. IPv6 has no setting against it.
_NO_REDIRECTS = """table inet labctl_hairpin
delete table inet labctl_hairpin
table inet labctl_hairpin {
	chain output {
		type filter hook output priority filter; policy accept;
		icmpv6 type nd-redirect drop
	}
}
"""


class Hairpin(Chokepoint):
    """Firewall on the router, which isolated switch ports and proxy ARP force a segment's own traffic through too."""

    name = "hairpin"

    def needs(self) -> tuple[Feature, ...]:
        return (*super().needs(), Feature("isolated-ports", "hosts of a segment may not reach each other directly"))

    def compile(self, policy: Policy, topology: Topology) -> Native:
        """The chokepoint's rules, within segments too. Hosts have to ask for each other, or nobody could answer."""
        return replace(super().compile(policy, topology), neighbours="asked")

    def render(self, native: Native, topology: Topology) -> Deployment:
        """The chokepoint with its answers for others, and every host's switch port isolated; nothing on any host."""
        router = {point: _answering(plan, topology) for point, plan in super().render(native, topology).items()}
        return router | {Point("port", host): _ISOLATED for host in topology.hosts}

    def _crosses(self, source: Host, target: Host) -> bool:
        return source.name != target.name


def _answering(plan: PointPlan, topology: Topology) -> PointPlan:
    """The router's plan, which also makes it answer for every host at the interface of the host's segment."""
    files = {_SWITCH: _text(_settings(topology)), _NEIGHBOURS: _text(_proxied(topology)),
             _RULES: _NO_REDIRECTS.encode()}
    begin = (("nft", "-f", _RULES), ("sysctl", "-qp", _SWITCH), ("ip", "-batch", _NEIGHBOURS))
    end = (
        ("/bin/sh", "-c", f"sed 's/ replace / del /' {_NEIGHBOURS} | ip -force -batch - 2>/dev/null; "
                          f"sed 's/=.*/=0/; /delay/d' {_SWITCH} | sysctl -qp -"),
        ("/bin/sh", "-c", "nft delete table inet labctl_hairpin 2>/dev/null || true"))
    return replace(plan, files={**plan.files, **files}, up=(*plan.up, *begin), update=(*plan.update, *begin),
                   down=(*plan.down, *end))


def _settings(topology: Topology) -> Iterator[str]:
    for index, _ in enumerate(topology.segments):
        device = f"eth{index}"
        yield f"net.ipv4.conf.{device}.proxy_arp_pvlan=1"
        yield f"net.ipv6.conf.{device}.proxy_ndp=1"
        yield f"net.ipv4.neigh.{device}.proxy_delay=0"  # by default an answer for another waits up to 0.8 s
        yield f"net.ipv6.neigh.{device}.proxy_delay=0"


def _proxied(topology: Topology) -> Iterator[str]:
    """IPv4 needs no list: whatever is routed back to where it was asked is answered for."""
    devices = {name: f"eth{index}" for index, name in enumerate(topology.segments)}
    for host in topology.hosts.values():
        yield f"neigh replace proxy {host.v6} dev {devices[host.segment]}"


def _text(lines: Iterator[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
