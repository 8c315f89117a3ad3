"""What a stateful firewall lets pass and what not, packet by packet, on real wires (switch_net)."""

from __future__ import annotations

import struct
import traceback
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from lab.model import Policy
from tests.e2e.switch_net import (
    IN,
    INSIDE,
    OUT,
    OUTSIDE,
    POLICY,
    End,
    Wire,
    frame,
    identity,
    make_pair,
    wired,
)
from tests.e2e.switch_tcp import CASES, PAYLOAD, case, tcp
from tests.e2e.switch_tcp import PORTS as _ports

# --- UDP and ICMP ------------------------------------------------------------------------------------


def udp(wire: Wire, sport: int, mine: bool = True, family: int = 4, dport: int = 53, **ip: Any) -> bool:
    ends, ports = ((INSIDE, OUTSIDE), (sport, dport)) if mine else ((OUTSIDE, INSIDE), (dport, sport))
    packet = frame(*ends, UDP(sport=ports[0], dport=ports[1]) / PAYLOAD, family, **ip)
    return wire.cross(wire.inside if mine else wire.outside, packet)


@case
def datagrams_are_answered_by_whom_they_asked(wire: Wire) -> None:
    for family in (4, 6):
        port = next(_ports)
        assert not udp(wire, port, mine=False, family=family)
        assert udp(wire, port, family=family) and udp(wire, port, mine=False, family=family)
        assert not udp(wire, port, family=family, dport=54)


@case
def silence_ends_a_flow(wire: Wire) -> None:
    port = next(_ports)
    assert udp(wire, port) and udp(wire, port, mine=False)
    age(wire, port)
    assert not udp(wire, port, mine=False)
    assert udp(wire, port) and udp(wire, port, mine=False)
    c = tcp(wire).open()
    age(wire, c.sport)
    assert not c.passes(True, "PA", 1, 1, PAYLOAD)


def age(wire: Wire, sport: int) -> None:
    """As if the flow's time had run out."""
    flows = wire.switch.maps["flows"]
    for key, value in flows.items():
        if key[40:42] == struct.pack("!H", sport):
            flows.put(key, value[:8] + struct.pack("=Q", 1) + value[16:])
            return
    raise AssertionError(f"no flow of port {sport}")


def echo(wire: Wire, identifier: int, asks: bool, mine: bool, family: int = 4) -> bool:
    ends = (INSIDE, OUTSIDE) if mine else (OUTSIDE, INSIDE)
    if family == 4:
        message: Packet = ICMP(type=8 if asks else 0, id=identifier)
    else:
        message = ICMPv6EchoRequest(id=identifier) if asks else ICMPv6EchoReply(id=identifier)
    return wire.cross(wire.inside if mine else wire.outside, frame(*ends, message, family))


@case
def an_echo_is_answered_once_asked(wire: Wire) -> None:
    for family in (4, 6):
        identifier = next(_ports)
        assert not echo(wire, identifier, asks=False, mine=False, family=family)
        assert echo(wire, identifier, asks=True, mine=True, family=family)
        assert echo(wire, identifier, asks=False, mine=False, family=family)
        assert not echo(wire, identifier + 1000, asks=False, mine=False, family=family)
        assert not echo(wire, identifier, asks=True, mine=False, family=family), "the policy lets nobody ask inside"


def error(about: Packet, family: int = 4, sender_is_inside: bool = False, message: Packet | None = None) -> Packet:
    """An ICMP error, sent to the sender of the packet that it quotes."""
    ends = (INSIDE, OUTSIDE) if sender_is_inside else (OUTSIDE, INSIDE)
    head = message or (ICMP(type=3, code=3) if family == 4 else ICMPv6DestUnreach(code=4))
    return frame(*ends, head / Raw(bytes(about[IP if family == 4 else IPv6])[:60]), family)


@case
def errors_about_a_flow_that_is_known_pass(wire: Wire) -> None:
    for family in (4, 6):
        port = next(_ports)
        asked = frame(INSIDE, OUTSIDE, UDP(sport=port, dport=53) / PAYLOAD, family)
        assert wire.cross(wire.inside, asked)
        assert wire.cross(wire.outside, error(asked, family))
        c = tcp(wire, family=family).open()
        sent = c.segment(True, "PA", 1, 1, PAYLOAD)
        assert wire.cross(wire.inside, sent)
        big = ICMP(type=3, code=4) if family == 4 else ICMPv6PacketTooBig(mtu=1280)
        assert wire.cross(wire.outside, error(sent, family, message=big))
    c = tcp(wire, begun_inside=False, dport=443).open()
    sent = c.segment(True, "PA", 1, 1, PAYLOAD)
    assert wire.cross(wire.outside, sent)
    assert wire.cross(wire.inside, error(sent, sender_is_inside=True))


@case
def errors_about_nothing_known_are_dropped(wire: Wire) -> None:
    for family in (4, 6):
        never = frame(INSIDE, OUTSIDE, UDP(sport=next(_ports), dport=53) / PAYLOAD, family)
        assert not wire.cross(wire.outside, error(never, family))
        c = tcp(wire, family=family).open()
        far = c.segment(True, "PA", 2**31, 1, PAYLOAD)
        assert not wire.cross(wire.outside, error(far, family)), "a number that was never sent"
    other = frame(OUTSIDE, INSIDE, UDP(sport=1, dport=53) / PAYLOAD)
    assert not wire.cross(wire.outside, error(other)), "quotes what somebody else sent"
    assert not wire.cross(wire.outside, frame(OUTSIDE, INSIDE, ICMP(type=5, code=1, gw="10.0.0.2") / Raw(bytes(28))))


# --- fragments and headers ---------------------------------------------------------------------------


def pieces(sport: int, dport: int = 53, offsets: tuple[int, ...] = (0, 64), identifier: int = 0) -> list[Packet]:
    """Fragments of one datagram of 128 bytes, 64 each, at these places."""
    whole = bytes(UDP(sport=sport, dport=dport, len=128, chksum=0) / bytes(120))
    return [frame(INSIDE, OUTSIDE, Raw(whole[at:at + 64]), proto=17, id=identifier or sport, frag=at // 8,
                  flags="MF" if at < 64 else 0) for at in offsets]


def pieces6(sport: int, dport: int = 53, offsets: tuple[int, ...] = (0, 64)) -> list[Packet]:
    whole = bytes(UDP(sport=sport, dport=dport, len=128, chksum=1) / bytes(120))
    return [frame(INSIDE, OUTSIDE, IPv6ExtHdrFragment(nh=17, id=sport, offset=at // 8, m=at < 64)
                  / Raw(whole[at:at + 64]), 6) for at in offsets]


@case
def fragments_follow_their_first(wire: Wire) -> None:
    for cut in (pieces, pieces6):
        first, later = cut(next(_ports))
        assert wire.cross(wire.inside, first) and wire.cross(wire.inside, later)


@case
def fragments_without_a_first_are_dropped(wire: Wire) -> None:
    port = next(_ports)
    assert udp(wire, port)
    for cut in (pieces, pieces6):
        assert not wire.cross(wire.inside, cut(next(_ports))[1])
        first, later = cut(next(_ports), 54)
        assert not wire.cross(wire.inside, first) and not wire.cross(wire.inside, later), "of a datagram that is denied"


@case
def fragments_that_overlap_are_dropped_and_spoil_the_rest(wire: Wire) -> None:
    for cut in (pieces, pieces6):
        first, over, later = cut(next(_ports), offsets=(0, 32, 64))
        assert wire.cross(wire.inside, first)
        assert not wire.cross(wire.inside, over)
        assert not wire.cross(wire.inside, later)
        port = next(_ports)
        (first,) = cut(port, offsets=(0,))
        assert wire.cross(wire.inside, first) and not wire.cross(wire.inside, first), "two firsts"


@case
def a_first_fragment_holds_the_whole_header(wire: Wire) -> None:
    header = bytes(TCP(sport=next(_ports), dport=80, flags="S"))
    assert not wire.cross(wire.inside, frame(INSIDE, OUTSIDE, Raw(header[:16]), proto=6, flags="MF", id=7))
    assert not wire.cross(wire.inside, frame(INSIDE, OUTSIDE, Raw(header[8:]), proto=6, frag=1, id=7))


@case
def extension_headers_hide_nothing(wire: Wire) -> None:
    port = next(_ports)
    inner = TCP(sport=port, dport=80, flags="S", seq=1000)
    assert wire.cross(wire.inside, frame(INSIDE, OUTSIDE, IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / inner, 6))
    hidden = TCP(sport=port, dport=81, flags="S", seq=1000)
    assert not wire.cross(wire.inside, frame(INSIDE, OUTSIDE, IPv6ExtHdrDestOpt() / hidden, 6))
    again = TCP(sport=next(_ports), dport=80, flags="S", seq=1000)
    routed = IPv6ExtHdrRouting(type=0, addresses=["fd00::9"])
    assert not wire.cross(wire.inside, frame(INSIDE, OUTSIDE, routed / again, 6))
    many = IPv6ExtHdrDestOpt()
    for _ in range(12):
        many = many / IPv6ExtHdrDestOpt()
    assert not wire.cross(wire.inside, frame(INSIDE, OUTSIDE, many / again, 6))
    assert not wire.cross(wire.inside, frame(INSIDE, OUTSIDE, again, options=[b"\x83\x07\x04\x0a\x00\x00\x09\x00"]))


# --- who somebody is ---------------------------------------------------------------------------------


@case
def nobody_speaks_arp_for_another(wire: Wire) -> None:
    def arp(**fields: Any) -> bool:
        said = {"hwsrc": INSIDE.mac, "psrc": INSIDE.v4, "pdst": OUTSIDE.v4, "op": 2, **fields}
        return wire.cross(wire.inside, Ether(src=INSIDE.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(**said))

    assert arp() and arp(psrc="0.0.0.0", op=1)
    assert not arp(psrc="10.0.0.254")
    assert not arp(psrc=OUTSIDE.v4, pdst=OUTSIDE.v4)
    assert not arp(hwsrc=OUTSIDE.mac)


@case
def nobody_advertises_another(wire: Wire) -> None:
    def nd(message: Packet, hlim: int = 255, src: str = INSIDE.v6) -> bool:
        head = Ether(src=INSIDE.mac, dst=OUTSIDE.mac) / IPv6(src=src, dst=OUTSIDE.v6, hlim=hlim)
        return wire.cross(wire.inside, head / message)

    mine, other = ICMPv6NDOptDstLLAddr(lladdr=INSIDE.mac), ICMPv6NDOptDstLLAddr(lladdr=OUTSIDE.mac)
    assert nd(ICMPv6ND_NA(tgt=INSIDE.v6) / mine)
    assert nd(ICMPv6ND_NS(tgt=OUTSIDE.v6) / ICMPv6NDOptSrcLLAddr(lladdr=INSIDE.mac))
    assert nd(ICMPv6ND_NA(tgt="fe80::ff:fe00:1") / mine, src="fe80::ff:fe00:1")
    assert not nd(ICMPv6ND_NA(tgt=OUTSIDE.v6) / mine)
    assert not nd(ICMPv6ND_NA(tgt=INSIDE.v6) / other)
    assert not nd(ICMPv6ND_NS(tgt=OUTSIDE.v6) / ICMPv6NDOptSrcLLAddr(lladdr=OUTSIDE.mac))
    assert not nd(ICMPv6ND_RA()), "a host is no router"
    assert not nd(ICMPv6ND_NA(tgt=INSIDE.v6) / mine, hlim=64), "came through a router"


@case
def nobody_has_anothers_address(wire: Wire) -> None:
    datagram = UDP(sport=next(_ports), dport=53) / PAYLOAD
    for source in ("10.0.0.3", "10.0.0.2", "0.0.0.0", "127.0.0.1"):
        packet = Ether(src=INSIDE.mac, dst=OUTSIDE.mac) / IP(src=source, dst=OUTSIDE.v4) / datagram
        assert not wire.cross(wire.inside, packet), source
    for source in ("fd00::3", "fe80::1", "::", "::ffff:10.0.0.1"):
        packet = Ether(src=INSIDE.mac, dst=OUTSIDE.mac) / IPv6(src=source, dst=OUTSIDE.v6) / datagram
        assert not wire.cross(wire.inside, packet), source
    wire.put(Policy("allow", ()))
    try:
        packet = Ether(src=INSIDE.mac, dst=OUTSIDE.mac) / IP(src="10.0.0.3", dst=OUTSIDE.v4) / datagram
        assert not wire.cross(wire.inside, packet), "whatever the policy allows"
    finally:
        wire.put()


@case
def nobody_has_anothers_mac(wire: Wire) -> None:
    packet = frame(INSIDE, OUTSIDE, UDP(sport=next(_ports), dport=53) / PAYLOAD)
    packet.src = "02:00:00:00:00:09"
    assert not wire.cross(wire.inside, packet)


@case
def only_ip_and_its_neighbours_pass(wire: Wire) -> None:
    for way in (wire.inside, wire.outside):
        me, him = (INSIDE, OUTSIDE) if way is wire.inside else (OUTSIDE, INSIDE)
        assert not wire.cross(way, Ether(src=me.mac, dst=him.mac, type=0x88B5) / Raw(bytes(46)))
    tagged = Ether(src=INSIDE.mac, dst=OUTSIDE.mac) / Dot1Q(vlan=5) / IP(src=INSIDE.v4, dst=OUTSIDE.v4)
    assert not wire.cross(wire.inside, tagged / UDP(sport=next(_ports), dport=53) / PAYLOAD)


# --- changes of policy -------------------------------------------------------------------------------


@case
def a_change_cuts_what_stands_with_a_reset(wire: Wire) -> None:
    for family in (4, 6):
        c, port = tcp(wire, family=family).open(), next(_ports)
        assert udp(wire, port)
        wire.put(Policy("deny", (IN,)))
        try:
            data = bytes(c.segment(True, "PA", 1, 1, PAYLOAD))
            arrived, back = wire.send(wire.inside, data)
            assert data not in arrived and len(back) == 1
            assert_reset(back[0], c.segment(True, "PA", 1, 1, PAYLOAD), family)
            assert not udp(wire, port, mine=False)
        finally:
            wire.put()


@case
def a_change_that_still_allows_is_not_noticed(wire: Wire) -> None:
    c = tcp(wire).open()
    wire.put(Policy("deny", (OUT,)))
    assert c.passes(True, "PA", 1, 1, PAYLOAD) and c.passes(False, "A", 1, 101)
    wire.put(POLICY)
    assert c.passes(True, "PA", 101, 1, PAYLOAD)


@case
def a_refusal_may_be_told(wire: Wire) -> None:
    wire.put(reset_refused=True)
    try:
        for family in (4, 6):
            asked = tcp(wire, dport=81, family=family).segment(True, "S", 0)
            arrived, back = wire.send(wire.inside, bytes(asked))
            assert bytes(asked) not in arrived and len(back) == 1
            assert_reset(back[0], asked, family)
    finally:
        wire.put()


def assert_reset(frame_back: bytes, asked: Packet, family: int) -> None:
    """A reset that the sender's stack takes: right numbers, right sums."""
    back, layer = Ether(frame_back), IP if family == 4 else IPv6
    assert (back.src, back.dst, back[layer].src, back[layer].dst) == (asked.dst, asked.src, asked[layer].dst,
                                                                      asked[layer].src)
    assert (back[TCP].sport, back[TCP].dport) == (asked[TCP].dport, asked[TCP].sport)
    if "A" in str(asked[TCP].flags):
        assert (str(back[TCP].flags), back[TCP].seq) == ("R", asked[TCP].ack)
    else:
        assert (str(back[TCP].flags), back[TCP].ack) == ("RA", asked[TCP].seq + 1)
    rebuilt = back.copy()
    del rebuilt[TCP].chksum
    if family == 4:
        del rebuilt[IP].chksum
    assert bytes(Ether(bytes(rebuilt))) == frame_back, "sums"


# --- all of them -------------------------------------------------------------------------------------


def run(_me: object, flags: list[str]) -> dict[str, str]:
    """Every case against the program built with these flags: what failed, with the line that did."""
    failed = {}
    with wired(tuple(flags)) as wire:
        for name, function in CASES.items():
            try:
                function(wire)
            except AssertionError as err:
                frames = [one for one in traceback.extract_tb(err.__traceback__) if "/switch_" in one.filename]
                failed[name] = f"{frames[-1].lineno}: {frames[-1].line} {err}"
    return failed


def tenants(_me: object, _argument: object) -> bool:
    """Two ports of two tenants whose hosts have the same addresses: neither policy nor state is shared."""
    with wired() as mine:
        make_pair(1, "h2", "p2", "h3", "p3")
        theirs = Wire(End("h2", INSIDE), End("h3", OUTSIDE), mine.switch)
        mine.put(Policy("deny", (IN,)), tenant=2)
        mine.switch.attach("p2", identity(INSIDE, 2))
        c = tcp(mine).open()
        other = c.again(wire=theirs)
        assert not other.passes(True, "S", 0), "their policy is another"
        assert not other.passes(True, "PA", 1, 1, PAYLOAD), "our connection is not theirs"
        assert c.passes(True, "PA", 1, 1, PAYLOAD)
        mine.put(POLICY, tenant=2)
        assert other.again(seq=(5, 6)).open().passes(True, "PA", 1, 1, PAYLOAD)
        mine.put(Policy("deny", ()), tenant=1)
        assert not c.passes(True, "PA", 101, 1, PAYLOAD) and other.passes(True, "A", 1, 1) is False
        assert other.again(seq=(5, 6)).passes(True, "PA", 101, 1, PAYLOAD), "our change is not theirs"
    return True
