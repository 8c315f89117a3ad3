"""Writes a host's packets as a pcap file on standard output: what tcpdump does, where tcpdump cannot.

tcpdump gives up root's rights by setgroups(2), which a user namespace with one user forbids (user_namespaces(7)), and
there is no option that has it keep them. Runs on the host with the standard library alone:

    python3 -I -S -c SOURCE FILTER COUNT

FILTER: the lines of `tcpdump -y EN10MB -ddd EXPRESSION` as one word, or nothing for everything. COUNT 0: until SIGINT.
"""

import ctypes
import signal
import socket
import struct
import sys

ETH_P_ALL, SO_ATTACH_FILTER, SO_TIMESTAMPNS = 3, 26, 35  # linux/if_ether.h, asm-generic/socket.h
SNAPLEN, ETHERNET = 262144, 1
MAGIC_NS = 0xA1B23C4D  # nanoseconds; draft-ietf-opsawg-pcap


def attach(listening: socket.socket, text: str) -> None:
    """The classic BPF program of `tcpdump -ddd`: how many instructions, then one a line."""
    rows = [tuple(map(int, line.split())) for line in text.splitlines()[1:]]
    program = b"".join(struct.pack("=HBBI", *row) for row in rows)
    kept = ctypes.create_string_buffer(program)
    listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(rows), ctypes.addressof(kept)))


def main(text: str, count: int) -> None:
    out = sys.stdout.buffer
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        if text:
            attach(listening, text)
        out.write(struct.pack("=IHHiIII", MAGIC_NS, 2, 4, 0, 0, SNAPLEN, ETHERNET))
        out.flush()
        print("labctl: listening on every interface", file=sys.stderr, flush=True)
        left = count or -1
        while left:
            packet, also, _flags, _address = listening.recvmsg(SNAPLEN, 64)
            seconds, nanoseconds = struct.unpack("=qq", also[0][2])
            out.write(struct.pack("=IIII", seconds, nanoseconds, len(packet), len(packet)) + packet)
            out.flush()
            left -= 1


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    main(sys.argv[1], int(sys.argv[2]))
