"""A table of flows that is full: who is forgotten, who stays, and whom there is no room for. On real wires."""

from __future__ import annotations

import contextlib
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from scapy.layers.inet import UDP
from scapy.packet import Packet

from enforcers.agentless.switch.daemon import layout
from enforcers.agentless.switch.daemon.switchd import DIRECTORY, Switch, abandon
from tests.e2e.switch_net import INSIDE, OUTSIDE, End, Wire, frame, wired
from tests.e2e.switch_tcp import CLOSED_KEPT, PAYLOAD, tcp

PORTS = range(1, 65536)
SPORT_AT = 14 + 20  # in a frame with an IPv4 header
UDP_NUMBER = 17
AT_ONCE = 100  # what an end's socket holds with ease
_NOBODY = 60_000  # an interface that is not there, whose flows fill the table


def from_ports(packet: Packet, ports: Iterable[int], at: int = SPORT_AT) -> Iterator[bytes]:
    """The packet from each of these ports; sums are left wrong, which a firewall leaves to the receiver."""
    whole = bytes(packet)
    for port in ports:
        yield whole[:at] + struct.pack("!H", port) + whole[at + 2:]


def pour(wire: Wire, sender: End, frames: Iterable[bytes]) -> int:
    """Send them all; how many came out at the other end."""
    arrived, waiting = 0, list(frames)
    receiver = wire.outside if sender is wire.inside else wire.inside
    for begin in range(0, len(waiting), AT_ONCE):
        for one in waiting[begin:begin + AT_ONCE]:
            sender.socket.send(one)
        arrived += len(wire.marked(sender, receiver))
        wire.switch.drain()
    return arrived


def table(wire: Wire) -> dict[bytes, bytes]:
    return dict(wire.switch.maps["flows"].items())


def flood(wire: Wire) -> dict[str, Any]:
    """A connection stands idle while 131,070 openings and datagrams come; then it goes on, and another begins."""
    stands, early = tcp(wire).open(), tcp(wire)
    early.passes(True, "S", 0)
    sent = pour(wire, wire.inside, from_ports(tcp(wire).segment(True, "S", 0), PORTS))
    sent += pour(wire, wire.inside, from_ports(frame(INSIDE, OUTSIDE, UDP(sport=1, dport=53) / PAYLOAD), PORTS))
    return {"passed": sent, "held": len(table(wire)), "stands": stands.passes(True, "PA", 1, 1, PAYLOAD),
            "forgotten": not early.passes(False, "SA", 0, 1), "fresh": tcp(wire).open().passes(True, "A", 1, 1),
            "told": told(wire)}


def told(wire: Wire) -> int:
    """Records of flows from INSIDE that the switch has told, each once."""
    wire.switch.sort()
    seen = [one for flows in wire.switch._by_port.values() for one in flows]
    assert len({(one.proto, one.sport, one.dport, one.start_ns) for one in seen}) == len(seen)
    wire.switch._by_port.clear()
    return len(seen)


def of_connections(wire: Wire) -> dict[str, Any]:
    """The table is full of connections that stand: no new one, until one of them goes."""
    stands = tcp(wire).open()
    flows, (mine, value) = wire.switch.maps["flows"], next(iter(table(wire).items()))
    others = [struct.pack("=I", _NOBODY) + mine[4:40] + struct.pack("!I", number)
              for number in range(layout.FLOWS - len(table(wire)))]
    flows.put_many(b"".join(others), value * len(others))
    refused = not tcp(wire).passes(True, "S", 0)
    counted = wire.switch._count(layout.COUNTERS.index("no_room"))
    goes_on = stands.passes(True, "PA", 1, 1, PAYLOAD)
    flows.delete(others[0])
    begins = tcp(wire).passes(True, "S", 0)
    flows.delete_many(b"".join(others[1:]))
    return {"refused": refused, "counted": counted, "goes_on": goes_on, "begins": begins}


def of_the_closed(wire: Wire) -> dict[str, Any]:
    """Twice as many connections as are kept when closed are refused by whom they ask: the older half is forgotten."""
    ports = range(1000, 1000 + 2 * CLOSED_KEPT)
    asks = tcp(wire)
    pour(wire, wire.inside, from_ports(asks.segment(True, "S", 0), ports))
    refused = pour(wire, wire.outside, from_ports(asks.segment(False, "RA", 0, 1), ports, SPORT_AT + 2))
    kept = {struct.unpack_from("!H", key, 40)[0] for key, value in table(wire).items() if value[layout.CLOSED_AT]}
    return {"refused": refused, "kept": len(kept), "the_newest": kept == set(ports[-CLOSED_KEPT:]), "told": told(wire)}


def handed_over(wire: Wire) -> dict[str, Any]:
    """The daemon is killed at its worst moments: what it had kept and not said so, and what only silence ended."""
    ports = range(1000, 1050)
    asks = tcp(wire)
    for one in from_ports(asks.segment(True, "S", 0), ports):
        wire.inside.socket.send(one)
    wire.marked(wire.inside, wire.outside)
    for one in from_ports(asks.segment(False, "RA", 0, 1), ports, SPORT_AT + 2):
        wire.outside.socket.send(one)
    wire.marked(wire.outside, wire.inside)

    def killed(content: bytes) -> None:
        wire.switch._spool.append(content)
        raise InterruptedError

    with contextlib.suppress(InterruptedError):
        wire.switch.ring.drain(killed)
    flows = wire.switch.maps["flows"]
    wire.cross(wire.inside, frame(INSIDE, OUTSIDE, UDP(sport=7, dport=53) / PAYLOAD))
    silent, value = next((key, value) for key, value in flows.items() if key[4] == UDP_NUMBER)
    second = Switch(b"")
    flows.put(silent, value[:8] + struct.pack("=Q", 1) + value[16:])
    second.sweep()
    third = Switch(b"")
    third.sort()
    seen = Counter(one.proto for one in third._by_port[wire.switch.ports["p0"]])
    for one in (second, third):
        one.ring.close()
    return dict(seen)


def abandoned(wire: Wire) -> dict[str, Any]:
    """The daemon is dead when the last port is let go: the next switch knows nothing of what it kept."""
    pour(wire, wire.inside, from_ports(tcp(wire, dport=81).segment(True, "S", 0), range(1000, 1050)))
    before = sorted(path.name for path in DIRECTORY.iterdir())
    wire.switch.ports.clear()
    abandon("p0")
    after = sorted(path.name for path in DIRECTORY.iterdir())
    return {"before": before, "after": after}


def run(_me: object, flags: list[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for one in (flood, of_connections, of_the_closed, handed_over, abandoned):
        with wired(tuple(flags)) as wire:
            found[one.__name__] = one(wire)
    return found
