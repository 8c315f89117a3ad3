"""What the attacker (and whom it talks to) runs on a host: a program of its own, standard library only.

Every line that it prints is JSON; what waits for others says {"ready": …} first and ends with its standard input.
`attempts` are the connections that it made, with the clock that all hosts of a lab share (CLOCK_MONOTONIC).

    exploit ADDRESS PORT NONCE [SOURCE]   the payload that labctl's own vulnerable services obey
    send PROTO ADDRESS PORT FILE          a file's bytes over one connection, or in datagrams
    receive PROTO PORT [FILE]             the other end: what came, as SHA-256, kept in FILE
    hold ADDRESS PORT                     one connection; every line read asks again over it
    relay PORT ADDRESS PORT               a TCP proxy
    remote PORT LOGIN FLAG, login ADDRESS PORT LOGIN     a remote service that wants a login, and its client
    resolve PORT ADDRESS, names PORT, ask ADDRESS HEX    a resolver, the name server behind it, data told in names
    echo ADDRESS HEX, echoes              data in the payload of echo requests, and who reads them (root)
    poison INTERFACE MAC VICTIM MAC CLAIMED SECONDS      ARP: I am CLAIMED; ends with the first frame it gets (root)
"""

import hashlib
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from bench.attacks.host_base import AGAIN, TIMEOUT_S, Puzzle, Try, pieces, readable, say
from bench.attacks.host_names import ask, echo, echoes, names, resolve
from bench.attacks.host_root import poison

TRANSFER_S = 5.0  # connected: what is between takes its time on a busy machine
_PROOF_KEY = 0x5A5A5A5A5A5A5A5A


def exploit(address: str, port: str, nonce: str, source: str = "") -> None:
    one = Try("tcp", address, int(port), source)
    one.send(b"LCX1" + bytes(4) + struct.pack("<QQ", 0, int(nonce)) + bytes(8))
    loot = b""
    while len(loot) < 13 or loot.count(b"\0", 0, -8) < 3:
        more = one.read()
        if not more:
            break
        loot += more
    host = process = ""
    if loot.startswith(b"OWNED") and struct.unpack("<Q", loot[-8:])[0] == int(nonce) ^ _PROOF_KEY:
        host, process = (part.decode() for part in loot[5:].split(b"\0")[:2])
    say(attempts=[one.note], host=host, process=process)


# --- files ------------------------------------------------------------------------------------


def send(proto: str, address: str, port: str, path: str) -> None:
    data = Path(path).read_bytes()
    one = Try(proto, address, int(port))
    if proto == "tcp":
        one.sock.settimeout(TRANSFER_S)
        one.send(data)
        one.shut()
        one.read()  # the receiver's word that it has all of it
    else:
        for piece in pieces(data):
            one.send(piece)
        one.read()
    say(attempts=[one.note])


def receive(proto: str, port: str, path: str = "") -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", int(port)))
        data = _stream(sock) if proto == "tcp" else _datagrams(sock)
    if path:
        Path(path).write_bytes(data)
        Path(path).chmod(0o755)
    say(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def _stream(sock: socket.socket) -> bytes:
    sock.listen(8)
    say(ready=True)
    if not readable(sock):
        return b""
    peer, _ = sock.accept()
    data = b""
    while readable(peer):
        more = peer.recv(1 << 20)
        if not more:
            break
        data += more
    peer.sendall(b"got it")
    peer.close()
    return data


def _datagrams(sock: socket.socket) -> bytes:
    say(ready=True)
    puzzle = Puzzle()
    while not puzzle.whole and readable(sock):
        data, peer = sock.recvfrom(65536)
        if puzzle.add(data):
            sock.sendto(b"got it", peer)
    return puzzle.whole


# --- connections ------------------------------------------------------------------------------


def hold(address: str, port: str) -> None:
    one = Try("tcp", address, int(port))
    say(ready=one.send(b"p" * 64) and bool(one.read()), attempts=[one.note])
    for _line in sys.stdin:
        one.note["outcome"] = "OPEN"
        say(alive=one.send(b"q" * 64) and one.read().startswith(b"q"))


def relay(port: str, address: str, target: str) -> None:
    with socket.create_server(("0.0.0.0", int(port)), backlog=8) as sock:
        say(ready=True)
        while readable(sock):
            near, _ = sock.accept()
            far = Try("tcp", address, int(target))
            say(attempts=[far.note])
            if far.opened:
                far.sock.settimeout(None)
                for one, other in ((near, far.sock), (far.sock, near)):
                    threading.Thread(target=_pump, args=(one, other), daemon=True).start()
            else:
                near.close()


def _pump(one: socket.socket, other: socket.socket) -> None:
    try:
        while data := one.recv(1 << 16):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other side has ended


def remote(port: str, login: str, flag: str) -> None:
    wanted, told = Path(login).read_bytes(), Path(flag).read_bytes()
    with socket.create_server(("0.0.0.0", int(port)), backlog=8) as sock:
        say(ready=True)
        while readable(sock):
            peer, _ = sock.accept()
            with peer:
                peer.settimeout(TIMEOUT_S)
                try:
                    peer.sendall(told if peer.recv(4096) == wanted else b"wrong")
                except OSError:
                    continue  # it went away; the next may come


def login(address: str, port: str, path: str) -> None:
    one = Try("tcp", address, int(port))
    one.send(Path(path).read_bytes())
    say(attempts=[one.note], flag=one.read().decode(errors="replace"))


VERBS: dict[str, Callable[..., None]] = {
    "exploit": exploit, "send": send, "receive": receive, "hold": hold, "relay": relay, "remote": remote,
    "login": login, "ask": ask, "names": names, "resolve": resolve, "echo": echo, "echoes": echoes, "poison": poison}

if __name__ == "__main__":
    words = sys.argv[1:]
    if words[0] == "--as":  # a dropped binary's user: it is nobody before it opens anything
        os.setgroups([])
        os.setresgid(int(words[1]), int(words[1]), int(words[1]))
        os.setresuid(int(words[1]), int(words[1]), int(words[1]))
        words = words[2:]
    if words[0] == "--again":
        AGAIN["times"], words = int(words[1]), words[2:]
    try:
        VERBS[words[0]](*words[1:])
    except OSError as error:
        say(failed=error.errno, why=f"{words[0]}: {error.strerror}")
