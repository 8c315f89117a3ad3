"""Headers of all packets at the switch ports of hosts: a ring that the kernel fills, read when the run is over.

The kernel shows a frame that a host sends before the port's firewall judges it, and one that goes to a host after it.
TPACKET_V2 ring, as in `bench.instruments.host_tap`: Documentation/networking/packet_mmap.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bench.instruments.telemetry import frames
from bench.instruments.telemetry.cloud import Seen

SNAP = 96
FRAME, BLOCK = 256, 1 << 16
_SOL_PACKET, _RX_RING, _STATISTICS, _VERSION = 263, 5, 6, 10
_TPACKET_V2, _ETH_P_ALL, _SO_ATTACH_FILTER = 1, 3, 26
_HEADER = struct.Struct("<IIIHHII")  # struct tpacket2_hdr: status, len, snaplen, mac, net, sec, nsec
_ADDRESS_AT = 32  # the sockaddr_ll that follows: family, protocol, ifindex (int), hatype, pkttype (u8)
_OUTGOING = 4
_IFINDEX = 0xFFFFF000 + 8  # SKF_AD_OFF + SKF_AD_IFINDEX
_FEWEST, _MOST = 1 << 16, 1 << 19  # frames: 16 to 128 MB


@dataclass(slots=True)
class Heard:
    """What the tap heard, once its block is over. `dropped`: packets it had no room for."""

    packets: list[Seen] = field(default_factory=list)
    dropped: int = 0


def ring_frames(flows: int) -> int:
    """How many frames to hold for so many flows."""
    return min(_MOST, max(_FEWEST, flows * 64))


@contextlib.contextmanager
def tapped(ports: Mapping[str, str], offset_s: float, room: int) -> Iterator[Heard]:
    """Listen at `ports` (interface → host). `offset_s`: CLOCK_REALTIME less CLOCK_MONOTONIC. Raises OSError."""
    heard = Heard()
    hosts = {socket.if_nametoindex(port): host for port, host in ports.items()}
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)) as sock:
        program = _filter(tuple(hosts))
        kept = ctypes.create_string_buffer(program)
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER,
                        struct.pack("@HP", len(program) // 8, ctypes.addressof(kept)))
        sock.setsockopt(_SOL_PACKET, _VERSION, struct.pack("i", _TPACKET_V2))
        blocks = -(-room * FRAME // BLOCK)
        sock.setsockopt(_SOL_PACKET, _RX_RING, struct.pack("IIII", BLOCK, blocks, FRAME, blocks * BLOCK // FRAME))
        with mmap.mmap(sock.fileno(), blocks * BLOCK) as ring:
            sock.getsockopt(_SOL_PACKET, _STATISTICS, 8)  # begins to count anew
            yield heard
            _total, heard.dropped = struct.unpack("II", sock.getsockopt(_SOL_PACKET, _STATISTICS, 8))
            heard.packets += _packets(ring, blocks * BLOCK // FRAME, hosts, offset_s)


def _filter(indexes: tuple[int, ...]) -> bytes:
    """Classic BPF: the first SNAP bytes of packets at one of these interfaces."""
    count = len(indexes)
    lines = [(0x20, 0, 0, _IFINDEX)]
    if count <= 250:  # a jump reaches 255 instructions; of more, all are taken and sorted out later
        lines += [(0x15, count - position, 0, index) for position, index in enumerate(indexes)]
        lines += [(0x06, 0, 0, 0)]
    lines += [(0x06, 0, 0, SNAP)]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def _packets(ring: mmap.mmap, count: int, hosts: Mapping[int, str], offset_s: float) -> Iterator[Seen]:
    for at in range(0, count * FRAME, FRAME):
        status, _len, length, _mac, net, sec, nsec = _HEADER.unpack_from(ring, at)
        if not status & 1:  # TP_STATUS_USER: the kernel has not come this far
            return
        index, _hardware, kind = struct.unpack_from("<iHB", ring, at + _ADDRESS_AT + 4)
        header = frames.parse(ring[at + net:at + net + min(length, SNAP)])
        if header is not None and index in hosts:
            yield Seen(sec + nsec / 1e9 - offset_s, hosts[index], kind != _OUTGOING, header)
