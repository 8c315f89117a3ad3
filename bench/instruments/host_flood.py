"""More new flows than an enforcement point likes, at a fixed rate and for a bounded time, each from a port of its own.

A program of its own, standard library only. Prints one JSON line with what it did.

    flood PROTO ADDRESS PORT RATE SECONDS
"""

import contextlib
import json
import socket
import struct
import sys
import time

_RESET = struct.pack("ii", 1, 0)  # struct linger: on, for no time
_BATCH = 64


def flood(proto: str, address: str, port: str, rate: str, seconds: str) -> None:
    """tcp: ask for a connection and let go of it; udp: one datagram. Nobody waits for an answer."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    where, sent, refused = (address, int(port)), 0, 0
    begin = time.monotonic()
    end = begin + float(seconds)
    while (now := time.monotonic()) < end:
        due = int((now - begin) * float(rate)) - sent - refused
        if due < 1:
            time.sleep(0.001)
        for _ in range(min(due, _BATCH)):
            try:
                with socket.socket(family, kind) as sock:
                    sock.setblocking(False)
                    if proto == "tcp":
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                        with contextlib.suppress(BlockingIOError):
                            sock.connect(where)
                    else:
                        sock.sendto(b"flood", where)
                sent += 1
            except OSError:  # its own host refused it, or has no port left
                refused += 1
    print(json.dumps({"sent": sent, "refused": refused, "seconds": time.monotonic() - begin}), flush=True)


if __name__ == "__main__":
    flood(*sys.argv[1:])
