"""Datagrams in another's name: sent from one host under the address of a second to a third, and whether they arrived.

For each flow of UDP that the policy allows from one host to another, every third host to which it allows no such flow
sends what the first might have sent: with its own link address, and in the same segment with the other's too; straight
to the target where it is near, and by way of the router. A datagram needs no answer, so to arrive is to have got in.
"""

from __future__ import annotations

import ipaddress
import json
import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lab.backends.served import ServedTestbed
from lab.hosts.attempts import Actor, Attempt
from lab.model import STRANGER, Family, Flow, Host, Topology
from lab.policy import NOBODY

MOST, FIRST_PORT = 300, 40_000
Link = Literal["own", "claimed"]  # the link address that it is sent from
Way = Literal["straight", "by the router"]
# What the host itself does not let out (an agent that watches raw sockets) has not arrived either.
_SEND = """import errno, json, socket, sys
try:
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    wire.bind(("eth0", 0))
    for frame in json.load(sys.stdin):
        try:
            wire.send(bytes.fromhex(frame))
        except OSError as err:
            if err.errno not in (errno.ENOBUFS, errno.EPERM, errno.EACCES):
                raise
except PermissionError:  # not even the socket is to be had
    pass
"""


@dataclass(frozen=True, slots=True)
class Forgery:
    """One such datagram: `sender` sends it, and it says that it is from `claimed`."""

    sender: str
    claimed: str
    target: str
    port: int
    family: Family
    link: Link
    way: Way

    def __str__(self) -> str:
        return (f"{self.sender} as {self.claimed} > {self.target} {self.port}/udp v{self.family}, {self.way}, "
                f"from {self.link} link address")


def forgeries(allowed: Iterable[Flow], topology: Topology, seed: int) -> tuple[Forgery, ...]:
    """All that can be tried where the policy allows these flows, or a seeded sample of MOST."""
    open_to = {(f.source, f.target, f.port, f.family) for f in allowed if f.proto == "udp"}
    found = [forgery for source, target, port, family in sorted(open_to) if source != target
             for sender in topology.hosts if sender not in (source, target)
             and (sender, target, port, family) not in open_to
             for forgery in _forms(topology, sender, source, target, port, family)]
    return tuple(found if len(found) <= MOST else random.Random(seed).sample(found, MOST))


def _forms(topology: Topology, sender: str, claimed: str, target: str, port: int,
           family: Family) -> Iterator[Forgery]:
    where = {name: topology.hosts[name].segment for name in (sender, claimed, target)}
    links: tuple[Link, ...] = ("own", "claimed") if where[sender] == where[claimed] else ("own",)
    ways: tuple[Way, ...] = ("straight", "by the router") if where[sender] == where[target] else ("by the router",)
    return (Forgery(sender, claimed, target, port, family, link, way) for link in links for way in ways)


def send(testbed: ServedTestbed, tried: Sequence[Forgery]) -> list[bool]:
    """Send them all; whether each arrived, by the word of the service that it was sent to."""
    topology = testbed.topology
    attempts = [Attempt(Actor(f.sender, STRANGER, NOBODY), "udp", f.family,
                        topology.hosts[f.target].address(f.family), f.port) for f in tried]

    def all_of_them(first: int) -> None:
        frames: dict[str, list[str]] = {}
        for index, forgery in enumerate(tried):
            frames.setdefault(forgery.sender, []).append(frame(forgery, topology, index, first + index).hex())
        for host, hexed in frames.items():
            done = testbed.run(host, ["/usr/bin/python3", "-I", "-S", "-c", _SEND], input=json.dumps(hexed).encode())
            if done.status:
                raise OSError(f"spoofing: {host}: {done.stderr.decode(errors='replace').strip()[-200:]}")

    try:
        return testbed.services.arrivals(attempts, all_of_them)
    finally:
        testbed.relearn()  # a frame under another's link address takes its place at the switch


# --- packets -------------------------------------------------------------------------------------


def frame(forgery: Forgery, topology: Topology, index: int, token: int) -> bytes:
    """The Ethernet frame, its payload a record that the built-in service reports (serve.h)."""
    from lab.backends.mininet_net import router_mac

    sender, claimed, target = (topology.hosts[name] for name in (forgery.sender, forgery.claimed, forgery.target))
    to = target.mac if forgery.way == "straight" else router_mac(topology, sender.segment)
    record = b"LCP1" + bytes(4) + token.to_bytes(8, "little") + bytes(16)
    packet = _datagram(claimed, target, forgery.family, FIRST_PORT + index, forgery.port, record)
    link = sender if forgery.link == "own" else claimed
    return _mac(to) + _mac(link.mac) + struct.pack("!H", 0x0800 if forgery.family == 4 else 0x86DD) + packet


def _datagram(source: Host, target: Host, family: Family, sport: int, dport: int, payload: bytes) -> bytes:
    ends = [ipaddress.ip_address(host.address(family)).packed for host in (source, target)]
    length = 8 + len(payload)
    pseudo = b"".join(ends) + struct.pack("!HH", 17, length)  # both families: the same words, in another order
    udp = struct.pack("!HHHH", sport, dport, length, 0) + payload
    udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp) or 0xFFFF) + udp[8:]
    if family == 6:
        return struct.pack("!IHBB", 6 << 28, length, 17, 64) + b"".join(ends) + udp
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, 17, 0) + b"".join(ends)
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + udp


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
