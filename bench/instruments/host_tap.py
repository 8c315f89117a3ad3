"""Packet stamps on a client host: TCP headers into a ring that the kernel fills, read only when the window is over.

A program of its own (standard library only) started as root on the host. `ready` on standard output when it listens;
when its standard input ends it writes one JSON line {"frames", "drops"} and then RECORD-sized records: nanoseconds of
CLOCK_REALTIME (u64), packet type (u8: 4 outgoing, 0 incoming), length captured (u8), the packet from its IP header.
During the window it costs no instruction in user space, so it does not disturb what it watches.

TPACKET_V2 ring: packet(7) and the kernel's Documentation/networking/packet_mmap.rst.
"""

import ctypes
import json
import mmap
import socket
import struct
import sys

SNAP = 80  # an IPv6 and a TCP header
FRAME, BLOCK = 256, 1 << 16
RECORD = 10 + SNAP
_SOL_PACKET, _RX_RING, _STATISTICS, _VERSION = 263, 5, 6, 10
_TPACKET_V2, _ETH_P_ALL, _SO_ATTACH_FILTER = 1, 3, 26
_HEADER = struct.Struct("<IIIHHII")  # struct tpacket2_hdr: status, len, snaplen, mac, net, sec, nsec
_PACKET_TYPE_AT = 32 + 10  # sll_pkttype in the sockaddr_ll that follows the header
# Classic BPF, from the IP header on: TCP of either family, its first SNAP bytes.
_FILTER = ((0x30, 0, 0, 0), (0x54, 0, 0, 0xF0), (0x15, 0, 2, 0x40), (0x30, 0, 0, 9), (0x05, 0, 0, 2),
           (0x15, 0, 3, 0x60), (0x30, 0, 0, 6), (0x15, 0, 1, 6), (0x06, 0, 0, SNAP), (0x06, 0, 0, 0))


def main(frames: int) -> None:
    """Listen on every interface of this network namespace, with room for `frames` packets."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))  # of every interface
    program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *one) for one in _FILTER))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(_FILTER), ctypes.addressof(program)))
    sock.setsockopt(_SOL_PACKET, _VERSION, struct.pack("i", _TPACKET_V2))
    blocks = -(-frames * FRAME // BLOCK)
    sock.setsockopt(_SOL_PACKET, _RX_RING, struct.pack("IIII", BLOCK, blocks, FRAME, blocks * BLOCK // FRAME))
    ring = mmap.mmap(sock.fileno(), blocks * BLOCK)
    sock.getsockopt(_SOL_PACKET, _STATISTICS, 8)  # begins to count anew
    out = sys.stdout.buffer
    out.write(b"ready\n")
    out.flush()
    sys.stdin.buffer.read()
    got, drops = struct.unpack("II", sock.getsockopt(_SOL_PACKET, _STATISTICS, 8))
    records = list(_records(ring, blocks * BLOCK // FRAME))
    out.write(json.dumps({"frames": len(records), "seen": got, "drops": drops}).encode() + b"\n")
    out.write(b"".join(records))
    out.flush()


def _records(ring: mmap.mmap, frames: int):  # type: ignore[no-untyped-def]
    for at in range(0, frames * FRAME, FRAME):
        status, _len, length, _mac, net, sec, nsec = _HEADER.unpack_from(ring, at)
        if not status & 1:  # TP_STATUS_USER: the kernel has not come this far
            return
        data = ring[at + net:at + net + min(length, SNAP)]
        yield struct.pack("<QBB", sec * 10**9 + nsec, ring[at + _PACKET_TYPE_AT], len(data)) + data.ljust(SNAP, b"\0")


if __name__ == "__main__":
    main(int(sys.argv[1]))
