"""Truth against packets: every attempt that services say they made, laid beside what tcpdump saw. Runs isolated.

A connection is a first packet (a SYN, a datagram, an echo request) and whether an answer to it came back (a SYN with
ACK, a datagram the other way, an echo reply). tcpdump listens on both ends' hosts and knows nothing of truth.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from bench.attack_labs import standing
from bench.instruments.probe import truth
from lab.backends.served import ServedTestbed
from lab.hosts.attempts import Actor, Attempt, Attempted
from lab.isolation import RunIdentity
from lab.model import FAMILIES, STRANGER, Flow, Topology, Truth
from lab.policy import flows
from lab.scenario import load
from tests.e2e.isolated import ROOT

TIMEOUT_S, WINDOW, SNAP = 1.0, 1024, 128
CLOSED = 9  # discard: nobody listens there
FILTER = ("(tcp[13] & 2 != 0) or (ip6[6] = 6 and ip6[53] & 2 != 0) or udp or icmp[0] = 8 or icmp[0] = 0 "
          "or (ip6[6] = 58 and (ip6[40] = 128 or ip6[40] = 129))")
Key = tuple[str, str, int, str, int]  # protocol, who asked, its port (echo: identifier), who was asked, port (echo: 0)


class Seen(NamedTuple):
    """A packet: whose connection it belongs to, and whether it asks or answers."""

    key: Key
    asks: bool


def agree(me: RunIdentity, n: int) -> dict[str, Any]:
    """`n` attempts of mixed kinds under the chokepoint; how many there were of each, and what does not agree."""
    scenario = load(ROOT / "scenarios" / "three-tier.yaml")
    every = flows(scenario)
    with standing(scenario, "chokepoint", me, lambda _text: None, lambda _message: None, every) as lab:
        assert lab is not None
        chosen = mixed(scenario.topology, every, n)
        with Captured(lab.testbed) as captured:
            got = lab.testbed.services.probe([attempt(flow, scenario.topology) for flow in chosen], TIMEOUT_S, WINDOW)
        truths = [truth(flow, one, scenario.topology, "probe") for flow, one in zip(chosen, got, strict=True)]
        packets = captured.packets()
    return compared(truths, got, packets)


def mixed(topology: Topology, every: Sequence[Flow], n: int) -> list[Flow]:
    """Declared and undeclared processes, all protocols, both families, one host, one segment, across; closed ports."""
    chance = random.Random(n)
    hosts = list(topology.hosts)
    shut = [Flow(source, STRANGER, "nobody", target, STRANGER, proto, CLOSED, family)
            for source in hosts for target in hosts for proto in ("tcp", "udp") for family in FAMILIES]
    return [chance.choice(shut if chance.random() < 0.2 else every) for _ in range(n)]


def attempt(flow: Flow, topology: Topology) -> Attempt:
    address = topology.hosts[flow.target].address(flow.family)
    return Attempt(Actor(flow.source, flow.process, flow.user), flow.proto, flow.family, address, flow.port)


class Captured:
    """tcpdump on every host while the body runs."""

    def __init__(self, testbed: ServedTestbed) -> None:
        self.testbed, self.running = testbed, {}  # type: ignore[var-annotated]

    def __enter__(self) -> Captured:
        for host in self.testbed.topology.hosts:
            argv = ["tcpdump", "-i", "any", "-y", "LINUX_SLL2", "-n", "-B", "65536", "-s", str(SNAP), "-w",
                    "/run/host/seen.pcap", "-Z", "root", FILTER]
            self.running[host] = self.testbed.spawn(host, argv)
        for host in self.running:  # its file's header is written when it listens
            while self.testbed.run(host, ["test", "-e", "/run/host/seen.pcap"]).status:
                pass
        hello = [Attempt(Actor(host, STRANGER, "nobody"), "udp", 4, self.testbed.topology.hosts[host].v4, CLOSED)
                 for host in self.running]
        self.testbed.services.probe(hello, TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        for host, one in self.running.items():
            self.testbed.run(host, ["kill", "-INT", str(one.pid)])
        for one in self.running.values():
            one.wait(90)
            one.kill()

    def packets(self) -> dict[str, list[Seen]]:
        """By host."""
        return {host: list(parse(Path(f"/proc/{self.testbed.pid(host)}/root/run/host/seen.pcap").read_bytes()))
                for host in self.running}


def parse(data: bytes) -> Iterator[Seen]:
    at = 24
    while at + 16 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 8)
        packet = data[at + 16 + 20:at + 16 + length]  # after LINUX_SLL2
        at += 16 + length
        if seen := read(packet):
            yield seen


def read(packet: bytes) -> Seen | None:
    if packet[0] >> 4 == 4:
        head, proto = (packet[0] & 15) * 4, packet[9]
        source, target = packet[12:16], packet[16:20]
    else:
        head, proto, source, target = 40, packet[6], packet[8:24], packet[24:40]
    one, other, rest = str(ip_address(source)), str(ip_address(target)), packet[head:]
    sport, dport = struct.unpack_from(">HH", rest)
    if proto == 6:
        asks = not rest[13] & 0x10
        return Seen(("tcp", one, sport, other, dport) if asks else ("tcp", other, dport, one, sport), asks)
    if proto == 17:  # which end asked is known by the port that is asked for
        return Seen(("udp", one, sport, other, dport), True)
    if proto in (1, 58) and rest[0] in (8, 128, 0, 129):
        asks, (number,) = rest[0] in (8, 128), struct.unpack_from(">H", rest, 4)
        return Seen(("icmp", one, number, other, 0) if asks else ("icmp", other, number, one, 0), asks)
    return None


def key_of(one: Truth) -> Key:
    return (one.proto, str(ip_address(one.source_address)), one.sport, str(ip_address(one.target_address)), one.dport)


def compared(truths: list[Truth], got: list[Attempted], packets: dict[str, list[Seen]]) -> dict[str, Any]:
    """How many of each kind; attempts without a packet, other answers, arrivals without one, packets of nobody."""
    asked = {host: Counter(one.key for one in seen if one.asks) for host, seen in packets.items()}
    answered = {host: Counter(one.key for one in seen if not one.asks) for host, seen in packets.items()}
    wrong: dict[str, list[str]] = {"unseen": [], "answer": [], "arrival": [], "nobody": []}
    kinds: Counter[str] = Counter()
    for truth_, one in zip(truths, got, strict=True):
        key = key_of(truth_)
        back = (key[0], key[3], key[4], key[1], key[2])
        replied = asked[truth_.source][back] if key[0] == "udp" else answered[truth_.source][key]
        kinds[f"{truth_.proto} v{one.attempt.family} {truth_.outcome}"] += 1
        if not asked[truth_.source][key]:
            wrong["unseen"].append(str(truth_))
        if (truth_.outcome == "OPEN") != bool(replied):
            wrong["answer"].append(str(truth_))
        if truth_.arrived and not asked[truth_.target][key]:
            wrong["arrival"].append(str(truth_))
    made = {key_of(one) for one in truths}
    for seen in asked.values():
        for key in seen:
            back = (key[0], key[3], key[4], key[1], key[2])
            if key not in made and back not in made and CLOSED not in (key[2], key[4]):
                wrong["nobody"].append(str(key))
    return {"n": len(truths), "kinds": dict(kinds), "wrong": {name: found[:5] for name, found in wrong.items()},
            "counts": {name: len(found) for name, found in wrong.items()}}
