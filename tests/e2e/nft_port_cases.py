"""The chain at a switch port of virtual-switch-nft on raw wires: what a host may send, and in whose name. Isolated."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from enforcers.agentless.virtual_switch_nft import _guard, link_local
from lab.isolation import RunIdentity
from tests.e2e.switch_net import INSIDE, OUTSIDE, End, Wire, make_pair, run

ME, OTHER, OWN_LL = INSIDE, OUTSIDE, link_local(INSIDE.mac)
TO = Ether(src=ME.mac, dst=OTHER.mac)
_UDP = UDP(sport=5353, dport=53) / Raw(b"hello")


def advert(target: str, mac: str, source: str = ME.v6) -> Packet:
    return TO / IPv6(src=source, dst=OTHER.v6, hlim=255) / ICMPv6ND_NA(tgt=target) / ICMPv6NDOptDstLLAddr(lladdr=mac)


def solicit(source: str, mac: str) -> Packet:
    return TO / IPv6(src=source, dst=OTHER.v6, hlim=255) / ICMPv6ND_NS(tgt=OTHER.v6) / ICMPv6NDOptSrcLLAddr(lladdr=mac)


# what a host sends -> (the frame, whether it comes out at the other end)
FRAMES: dict[str, tuple[Packet, bool]] = {
    "own v4": (TO / IP(src=ME.v4, dst=OTHER.v4) / _UDP, True),
    "own v6": (TO / IPv6(src=ME.v6, dst=OTHER.v6) / _UDP, True),
    "own link-local": (TO / IPv6(src=OWN_LL, dst=OTHER.v6) / _UDP, True),
    "own arp": (TO / ARP(op=2, hwsrc=ME.mac, psrc=ME.v4, pdst=OTHER.v4), True),
    "own advert": (advert(ME.v6, ME.mac), True),
    "own advert, bare": (TO / IPv6(src=ME.v6, dst=OTHER.v6, hlim=255) / ICMPv6ND_NA(tgt=ME.v6), True),
    "own solicit": (solicit(ME.v6, ME.mac), True),
    "before it has an address": (TO / IPv6(src="::", dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt=ME.v6), True),
    "another's mac": (Ether(src=OTHER.mac, dst=ME.mac) / IP(src=ME.v4, dst=OTHER.v4) / _UDP, False),
    "another's v4": (TO / IP(src="10.0.0.9", dst=OTHER.v4) / _UDP, False),
    "another's v6": (TO / IPv6(src="fd00::9", dst=OTHER.v6) / _UDP, False),
    "another's arp": (TO / ARP(op=2, hwsrc=ME.mac, psrc="10.0.0.9", pdst=OTHER.v4), False),
    "arp with another's mac": (TO / ARP(op=2, hwsrc=OTHER.mac, psrc=ME.v4, pdst=OTHER.v4), False),
    "advert of another": (advert("fd00::9", ME.mac), False),
    "advert with another's mac": (advert(ME.v6, OTHER.mac), False),
    "advert from another": (advert(ME.v6, ME.mac, "fd00::9"), False),
    "solicit with another's mac": (solicit(ME.v6, OTHER.mac), False),
    "router advertisement": (TO / IPv6(src=OWN_LL, dst="ff02::1", hlim=255) / ICMPv6ND_RA(), False),
    "redirect": (TO / IPv6(src=OWN_LL, dst=OTHER.v6, hlim=255) / ICMPv6ND_Redirect(tgt=ME.v6, dst="fd00::7"), False),
    "vlan": (Ether(src=ME.mac, dst=OTHER.mac) / Dot1Q(vlan=5) / IP(src=ME.v4, dst=OTHER.v4) / _UDP, False),
    "neither IP nor ARP": (Ether(src=ME.mac, dst=OTHER.mac, type=0x88CC) / Raw(b"lldp" * 16), False),
}
# a line of the chain, weakened -> what then comes through
WEAKER: dict[str, tuple[Callable[[str], str], str]] = {
    "mac": (lambda t: t.replace(f"ether saddr != {ME.mac} drop\n", ""), "another's mac"),
    "v4": (lambda t: t.replace(f"ip saddr {ME.v4} accept", "ip saddr 0.0.0.0/0 accept"), "another's v4"),
    "v6": (lambda t: t.replace("\t\tip6 saddr { fd00::1, ", "\t\tip6 saddr { fd00::9, fd00::1, "), "another's v6"),
    "arp": (lambda t: t.replace("arp saddr ip { 0.0.0.0,", "arp saddr ip { 0.0.0.0, 10.0.0.9,"), "another's arp"),
    "target": (lambda t: t.replace("\t\t@th,64,128 != ", "\t\t@th,64,128 == "), "advert of another"),
    "option": (lambda t: t.replace("@th,192,16 0x0201 @th,208,48 0x020000000001 ", ""), "advert with another's mac"),
    "router": (lambda t: t.replace("nd-router-advert, nd-redirect", "nd-redirect"), "router advertisement"),
}


@contextmanager
def guarded(text: str) -> Iterator[Wire]:
    make_pair(0, "h0", "p0", "h1", "p1")
    try:
        wire = Wire(End("h0", INSIDE), End("h1", OUTSIDE), None)  # type: ignore[arg-type]
        subprocess.run(["nft", "-D", "port=p0", "-f", "-"], input=text, text=True, check=True, capture_output=True)
        yield wire
        run("nft", "delete", "table", "netdev", "labctl_port_0")
    finally:
        for link in ("s0", "h0", "h1"):
            run("ip", "link", "del", link)


def whole(_me: RunIdentity, _argument: object) -> dict[str, bool]:
    """Frames that fared otherwise than they should."""
    with guarded(_guard(0, ME)) as wire:
        met = {name: wire.cross(wire.inside, packet) for name, (packet, _) in FRAMES.items()}
    return {name: passed for name, passed in met.items() if passed != FRAMES[name][1]}


def weaker(_me: RunIdentity, _argument: object) -> dict[str, bool]:
    """By what was weakened, whether the frame that it is against came through."""
    found = {}
    for name, (change, frame) in WEAKER.items():
        text = change(_guard(0, ME))
        assert text != _guard(0, ME), name
        with guarded(text) as wire:
            found[name] = wire.cross(wire.inside, FRAMES[frame][0])
    return found
