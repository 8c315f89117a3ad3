"""Two ends on raw wires with a guarded switch port between them, for packets that no honest stack would send.

`inside` is the end whose port is guarded; `outside` is beyond it. Nothing answers but what a test sends.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from enforcers.agentless.switch.bundle import program
from enforcers.agentless.switch.daemon.switchd import PINS, Switch
from enforcers.agentless.switch.tables import Tables
from enforcers.agentless.virtual_switch import OPTIONS, _document
from lab.model import Host, Policy, Rule, Segment, Selector, Service, Topology

INSIDE = Host("inside", "s", "10.0.0.1", "fd00::1", "02:00:00:00:00:01")
OUTSIDE = Host("outside", "s", "10.0.0.2", "fd00::2", "02:00:00:00:00:02")
TOPOLOGY = Topology({"s": Segment("s", "10.0.0.0/24", "fd00::/64", "10.0.0.254", "fd00::ff")},
                    {host.name: host for host in (INSIDE, OUTSIDE)}, {}, {})
OUT = Rule("out", "allow", Selector({"host": ("inside",)}), Selector({"host": ("outside",)}),
           (Service("tcp", 80, 80), Service("udp", 53, 53), Service("icmp")))
IN = Rule("in", "allow", Selector({"host": ("outside",)}), Selector({"host": ("inside",)}), (Service("tcp", 443, 443),))
POLICY = Policy("deny", (OUT, IN))
ARRIVAL_S = 30.0
PROMISCUOUS = 1


class End:
    """A raw socket on one end of a wire: frames as bytes."""

    def __init__(self, interface: str, host: Host) -> None:
        self.host = host
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.bind((interface, 0))
        self.socket.setsockopt(263, PROMISCUOUS, _membership(interface))  # SOL_PACKET
        self.socket.settimeout(ARRIVAL_S)

    def heard(self, until: bytes) -> list[bytes]:
        """What arrived here before the frame `until`. Raises TimeoutError if that never does."""
        found = []
        while True:
            frame, (_interface, _proto, kind, *_rest) = self.socket.recvfrom(65536)
            if kind == socket.PACKET_OUTGOING:
                continue
            if frame == until:
                return found
            found.append(frame)


def _membership(interface: str) -> bytes:
    return socket.if_nametoindex(interface).to_bytes(4, "little") + PROMISCUOUS.to_bytes(2, "little") + bytes(10)


@dataclass
class Wire:
    """Both ends, and the switch between them."""

    inside: End
    outside: End
    switch: Switch
    marks: int = 0

    def cross(self, sender: End, packet: Packet) -> bool:
        """Whether the packet, sent at one end, came out at the other."""
        frame = bytes(packet)
        arrived, _ = self.send(sender, frame)
        return frame in arrived

    def send(self, sender: End, frame: bytes) -> tuple[list[bytes], list[bytes]]:
        """What came out at the other end, and what came back to this one."""
        receiver = self.outside if sender is self.inside else self.inside
        sender.socket.send(frame)
        return self.marked(sender, receiver), self.marked(receiver, sender)

    def marked(self, sender: End, receiver: End) -> list[bytes]:
        """What came before a frame that always passes: one way is one queue."""
        self.marks += 1
        me, nobody = sender.host, f"10.0.0.{100 + self.marks % 100}"
        mark = bytes(Ether(src=me.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=me.mac, psrc=me.v4, pdst=nobody))
        sender.socket.send(mark)
        begin = time.monotonic()
        found = receiver.heard(mark)
        assert time.monotonic() - begin < ARRIVAL_S
        return found

    def put(self, policy: Policy = POLICY, tenant: int = 1, **options: Any) -> None:
        """Put a policy in force."""
        document = _document(Tables(policy, TOPOLOGY), tenant)
        self.switch.policies.put({**document, "options": {**OPTIONS, **options}})


@contextmanager
def wired(flags: tuple[str, ...] = ()) -> Iterator[Wire]:
    """One guarded port (p0) with its host's end (h0), and an unguarded one across the bridge. In private namespaces."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one queue: what is sent first arrives first
    inside, outside = make_pair(0, "h0", "p0", "h1", "p1")
    switch = Switch(program(flags))
    try:
        wire = Wire(End(inside, INSIDE), End(outside, OUTSIDE), switch)
        wire.put()
        switch.attach("p0", identity(INSIDE, 1))
        yield wire
    finally:
        for port in list(switch.ports):
            switch.detach(port)
        switch.close()
        run("ip", "link", "del", "s0")
        run("ip", "link", "del", "h0")
        run("ip", "link", "del", "h1")
        assert not os.path.ismount(PINS)


def identity(host: Host, tenant: int) -> dict[str, object]:
    return {"tenant": tenant, "mac": host.mac, "v4": host.v4, "v6": host.v6}


def make_pair(bridge: int, one: str, one_port: str, two: str, two_port: str) -> tuple[str, str]:
    run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    run("ip", "link", "add", f"s{bridge}", "type", "bridge", "mcast_snooping", "0")
    run("ip", "link", "set", f"s{bridge}", "up")
    for end, port in ((one, one_port), (two, two_port)):
        run("ip", "link", "add", end, "type", "veth", "peer", "name", port)
        run("ip", "link", "set", port, "master", f"s{bridge}")
        for interface in (end, port):
            run("ip", "link", "set", interface, "up")
    return one, two


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


# --- packets ---------------------------------------------------------------------------------------


def frame(sender: Host, receiver: Host, payload: Packet, family: int = 4, **ip: Any) -> Packet:
    """`payload` in an honest packet from one to the other; `ip` are fields of its IP header."""
    layer = (IP(src=sender.v4, dst=receiver.v4, **ip) if family == 4 else IPv6(src=sender.v6, dst=receiver.v6, **ip))
    return Ether(src=sender.mac, dst=receiver.mac) / layer / payload


@dataclass
class Connection:
    """A TCP connection as its two ends would write it: keeps sequence numbers, asserts nothing."""

    wire: Wire
    sport: int
    dport: int = 80
    family: int = 4
    begun_inside: bool = True
    seq: tuple[int, int] = (1000, 9000)  # of who began, of the other
    window: int = 8192

    def segment(self, mine: bool, flags: str, seq: int, ack: int = 0, payload: bytes = b"", **more: Any) -> Packet:
        """From who began (`mine`), or from the other. Numbers are relative to each side's first."""
        ports = (self.sport, self.dport) if mine else (self.dport, self.sport)
        me, him = self.seq if mine else self.seq[::-1]
        sender, receiver = (INSIDE, OUTSIDE) if mine is self.begun_inside else (OUTSIDE, INSIDE)
        header = TCP(sport=ports[0], dport=ports[1], flags=flags, seq=(me + seq) % 2**32,
                     ack=(him + ack) % 2**32 if "A" in flags else 0, window=more.pop("window", self.window), **more)
        return frame(sender, receiver, header / payload, self.family)

    def passes(self, mine: bool, flags: str, seq: int, ack: int = 0, payload: bytes = b"", **more: Any) -> bool:
        sender = self.wire.inside if mine is self.begun_inside else self.wire.outside
        return self.wire.cross(sender, self.segment(mine, flags, seq, ack, payload, **more))

    def open(self, **more: Any) -> Connection:
        """The three of a handshake, each of which passes."""
        assert self.passes(True, "S", 0, **more)
        assert self.passes(False, "SA", 0, 1, **more)
        assert self.passes(True, "A", 1, 1)
        return self

    def again(self, **changes: Any) -> Connection:
        return replace(self, **changes)
