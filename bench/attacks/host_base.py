"""What the attacker's tool is made of: attempts, data in pieces, what it says. Standard library only."""

import errno
import json
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

TIMEOUT_S = 0.8
AGAIN = {"times": 0}  # how often a connection that fails is tried again
PAUSE_S = 0.25
PIECE = 512
MAGIC = b"LCT1"  # begins what is sent in pieces: index, count
_OUTCOMES = {errno.ECONNREFUSED: "REFUSED", errno.EPERM: "DENIED_LOCALLY", errno.EACCES: "DENIED_LOCALLY",
             errno.EHOSTUNREACH: "UNREACHABLE", errno.ENETUNREACH: "UNREACHABLE"}


def say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def outcome(err: OSError) -> str:
    if isinstance(err, TimeoutError):
        return "TIMED_OUT"
    return _OUTCOMES.get(err.errno or 0, "BROKEN")


class Try:
    """One connection or exchange: made, and told as an attempt."""

    def __init__(self, proto: str, address: str, port: int, source: str = "") -> None:
        kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
        for left in reversed(range(AGAIN["times"] + 1)):
            self.sock = socket.socket(socket.AF_INET, kind)
            self.sock.settimeout(TIMEOUT_S)
            self.sock.bind((source, 0))
            self.note: dict[str, Any] = {
                "proto": proto, "target": address, "port": port, "sport": self.sock.getsockname()[1],
                "start": time.monotonic(), "bytes": 0, "outcome": "OPEN"}
            self.opened = self._do(lambda: self.sock.connect((address, port)))
            if self.opened or not left:
                break
            time.sleep(PAUSE_S)

    def send(self, data: bytes) -> bool:
        self.note["bytes"] += len(data)
        return self.opened and self._do(lambda: self.sock.sendall(data))

    def read(self, most: int = 65536) -> bytes:
        got: list[bytes] = []
        if self.opened:
            self._do(lambda: got.append(self.sock.recv(most)))
        self.note["bytes"] += sum(map(len, got))
        return b"".join(got)

    def shut(self) -> None:
        """Say that nothing more comes."""
        if self.opened:
            self._do(lambda: self.sock.shutdown(socket.SHUT_WR))

    def _do(self, what: Callable[[], object]) -> bool:
        try:
            what()
        except OSError as err:
            self.note["outcome"] = outcome(err)
            return False
        finally:
            self.note["end"] = time.monotonic()
        return True


def pieces(data: bytes) -> Iterator[bytes]:
    count = -(-len(data) // PIECE)
    for index in range(count):
        yield MAGIC + struct.pack("<HH", index, count) + data[index * PIECE:(index + 1) * PIECE]


class Puzzle:
    """Pieces that come in any order; `whole` when all have."""

    def __init__(self) -> None:
        self.got: dict[int, bytes] = {}
        self.whole = b""

    def add(self, piece: bytes) -> bool:
        if len(piece) < 8 or not piece.startswith(MAGIC):
            return False
        index, count = struct.unpack("<HH", piece[4:8])
        self.got[index] = piece[8:]
        if len(self.got) == count:
            self.whole = b"".join(self.got[at] for at in sorted(self.got))
        return bool(self.whole)


def readable(sock: socket.socket) -> bool:
    """Whether something came before standard input ended."""
    ready, _, _ = select.select([sock, sys.stdin], [], [])
    return sock in ready


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
