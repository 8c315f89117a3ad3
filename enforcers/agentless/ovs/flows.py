"""From rules between addresses to OpenFlow 1.3+ flow tables with connection tracking (ovs-ofctl text). Pure.

Table 0 is the port: who sends (`guard`). Table 10 sorts: what a cable carries, what is tracked. Table 20 judges by the
addresses and ports that the connection began with, so replies and ICMP errors are judged as their connection is, and a
changed policy re-judges what is established. Table 30 judges protocols that are not tracked, table 40 passes.
"""

from __future__ import annotations

from collections.abc import Iterator

from enforcers.agentless.ports import guarded
from enforcers.agentless.virtual_switch_nft import link_local
from enforcers.base import PORT_MAX, Resolver, Services
from lab.model import FAMILIES, Family, Host, Topology

SORT, JUDGE, UNTRACKED, PASS = 10, 20, 30, 40
POLICY_COOKIE = "0x1"  # those of a port have one made of its host's MAC
_PASS, _DROP = f"goto_table:{PASS}", "drop"
_NUMBERS: dict[Family, dict[str, int]] = {4: {"tcp": 6, "udp": 17, "icmp": 1}, 6: {"tcp": 6, "udp": 17, "icmp": 58}}
_CABLE = (130, 131, 132, 133, 134, 135, 136, 143)  # neighbour and multicast listener discovery
_IP: dict[Family, str] = {4: "ip", 6: "ipv6"}
_SOURCE: dict[Family, str] = {4: "nw", 6: "ipv6"}


def policy(resolver: Resolver, topology: Topology) -> list[str]:
    """The flows of one bridge (`$zone`: its connection tracking zone), without what is any port's own."""
    default = resolver.policy.default == "allow"
    lines = [f"delete cookie={POLICY_COOKIE}/-1", _flow(0, 0, "", f"goto_table:{SORT}"), *_sorted(), *_passed()]
    lines += [_flow(JUDGE, 200, "ct_state=+inv+trk", _DROP), _flow(JUDGE, 0, "", _verdict(default, JUDGE)),
              _flow(UNTRACKED, 0, "", _verdict(default, UNTRACKED))]
    ours = {host.name for host in guarded(topology)}
    for source in topology.hosts.values():
        for target in topology.hosts.values():
            for family in FAMILIES if source is not target else ():
                judged = source.name in ours or target.name in ours
                services = resolver.services(source, target, family) if judged else Services((), (), True)
                lines += _pair(source, target, family, services, default)
    return lines


def _sorted() -> Iterator[str]:
    yield _flow(SORT, 100, "arp", "NORMAL")
    for kind in _CABLE:
        yield _flow(SORT, 100, f"icmp6,icmp_type={kind}", "NORMAL")
    for family in FAMILIES:
        for number in _NUMBERS[family].values():
            yield _flow(SORT, 90, f"{_IP[family]},nw_proto={number}", f"ct(table={JUDGE},zone=$zone)")
        yield _flow(SORT, 80, _IP[family], f"goto_table:{UNTRACKED}")
    yield _flow(SORT, 90, "ipv6,nw_proto=44", f"ct(table={JUDGE},zone=$zone)")  # what later fragments are said to be
    yield _flow(SORT, 0, "", _DROP)


def _passed() -> Iterator[str]:
    commit = "ct(commit,zone=$zone),NORMAL"
    for word in ("tcp", "tcp6"):  # what begins in the middle would be picked up; later fragments go with their first
        yield _flow(PASS, 100, f"{word},ct_state=+new+trk,tcp_flags=+syn-ack", commit)
        yield _flow(PASS, 90, f"{word},ct_state=+new+trk,ip_frag=not_later", _DROP)
    for word in _IP.values():
        yield _flow(PASS, 80, f"{word},ct_state=+new+trk", commit)
    yield _flow(PASS, 0, "", "NORMAL")


def _pair(source: Host, target: Host, family: Family, services: Services, default: bool) -> Iterator[str]:
    ip, key = _IP[family], _SOURCE[family]
    a, b = source.address(family), target.address(family)
    pair = f"{ip},ct_state=+trk-inv,ct_{key}_src={a},ct_{key}_dst={b}"
    for proto, low, high, allow in services.ports:
        for value, mask in masked(low, high):
            port = f"{value}" if mask == PORT_MAX else f"0x{value:x}/0x{mask:x}"
            match = f"{pair},ct_nw_proto={_NUMBERS[family][proto]},ct_tp_dst={port}"
            yield _flow(JUDGE, 120, match, _verdict(allow, JUDGE))
    for name, allow in services.protocols:
        yield _flow(JUDGE, 110, f"{pair},ct_nw_proto={_NUMBERS[family][name]}", _verdict(allow, JUDGE))
    if services.other != default:
        yield _flow(JUDGE, 100, pair, _verdict(services.other, JUDGE))
        yield _flow(UNTRACKED, 100, f"{ip},{key}_src={a},{key}_dst={b}", _verdict(services.other, UNTRACKED))


def masked(low: int, high: int) -> Iterator[tuple[int, int]]:
    """The fewest (value, mask) of ports that are together `low`..`high`."""
    while low <= high:
        size = low & -low or PORT_MAX + 1
        while low + size - 1 > high:
            size //= 2
        yield low, PORT_MAX + 1 - size
        low += size


def guard(host: Host) -> list[str]:
    """The flows of a host's port (`$port`): untagged frames in the host's own name alone, by any protocol."""
    own, mac, onward = (host.v6, link_local(host.mac)), host.mac, f"goto_table:{SORT}"
    cookie = f"0x1{mac.replace(':', '')}"
    me = f"in_port=$port,vlan_tci=0,dl_src={mac}"
    found = [(100, f"{me},ip,nw_src={host.v4}")]
    found += [(100, f"{me},arp,arp_sha={mac},arp_spa={address}") for address in (host.v4, "0.0.0.0")]
    found += [(100, f"{me},ipv6,ipv6_src={address}") for address in own]
    found += [(110, f"{me},icmp6,icmp_type={kind},ipv6_src=::") for kind in (131, 133, 143)]
    found += [(110, f"{me},icmp6,icmp_type=135,ipv6_src=::,nd_target={address},nd_sll={_NO_LINK}") for address in own]
    for address in own:
        for link in (mac, _NO_LINK):
            found.append((110, f"{me},icmp6,icmp_type=135,ipv6_src={address},nd_sll={link}"))
            found += [(110, f"{me},icmp6,icmp_type=136,ipv6_src={address},nd_target={target},nd_tll={link}")
                      for target in own]
    lines = [_flow(0, priority, match, onward, cookie) for priority, match in found]
    lines += [_flow(0, 105, f"in_port=$port,icmp6,icmp_type={kind}", _DROP, cookie) for kind in (134, 135, 136, 137)]
    return [f"delete cookie={cookie}/-1", *lines, _flow(0, 50, "in_port=$port", _DROP, cookie)]


_NO_LINK = "00:00:00:00:00:00"  # matches where the option is absent


def _verdict(allow: bool, table: int) -> str:
    return _DROP if not allow else _PASS if table == JUDGE else "NORMAL"


def _flow(table: int, priority: int, match: str, actions: str, cookie: str = POLICY_COOKIE) -> str:
    head = f"add cookie={cookie},table={table},priority={priority}"
    return f"{head},{match},actions={actions}" if match else f"{head},actions={actions}"
