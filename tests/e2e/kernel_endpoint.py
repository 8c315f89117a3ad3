"""Both ends of what the tests of the eBPF agent's kernel side try: run as `PYTHON -I -S -c THIS CODE`.

CODE is Python that uses the functions below and says its outcome with `say`. Standard library without site packages.
"""

import contextlib
import errno
import json
import select
import socket
import struct
import sys
import time

WAIT_S = 0.4
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM


def say(what):
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def outcome(attempt, *arguments, **named):
    """OPEN, or the name of the error that came instead."""
    try:
        attempt(*arguments, **named)
    except TimeoutError:
        return "TIMED_OUT"
    except OSError as err:
        return errno.errorcode.get(err.errno, str(err))
    return "OPEN"


def exchange(s, text=b"hello"):
    """Send and have it back."""
    s.sendall(text)
    got = s.recv(65536)
    if not got:
        raise OSError(errno.ECONNRESET, "closed")


def tcp(address, port, family=None, bind=None):
    with socket.socket(family or family_of(address), TCP) as s:
        s.settimeout(WAIT_S)
        if bind:
            s.bind(bind)
        s.connect((address, port))
        exchange(s)


def connected(address, port):
    s = socket.socket(family_of(address), TCP)
    s.settimeout(WAIT_S)
    s.connect((address, port))
    return s


def udp(address, port, connect=True, text=b"hello", bind=None):
    with socket.socket(family_of(address), UDP) as s:
        s.settimeout(WAIT_S)
        if bind:
            s.bind(bind)
        if connect:
            s.connect((address, port))
            s.send(text)
        else:
            s.sendto(text, (address, port))
        s.recv(65536)


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ping(address, raw=False):
    """An echo request and its reply, over a ping socket or a raw one."""
    v6 = ":" in address
    proto = socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP
    with socket.socket(family_of(address), socket.SOCK_RAW if raw else UDP, proto) as s:
        s.settimeout(WAIT_S)
        body = struct.pack("!BBHHH", 128 if v6 else 8, 0, 0, 77, 1) + b"abcdefgh"
        if raw and not v6:
            body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
        s.sendto(body, (address, 0))
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:  # a raw socket hears everything, also what it asked itself on one host
            got = s.recv(65536)
            kind = got[20] if raw and not v6 else got[0]
            if kind == (129 if v6 else 0):
                return
        raise TimeoutError


def listen(port, address="0.0.0.0", backlog=64):
    s = socket.socket(family_of(address), TCP)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port))
    s.listen(backlog)
    return s


def answer(*sockets):
    """Echo on listeners and UDP sockets until standard input ends; say each first payload of a connection."""
    watched = [sys.stdin, *sockets]
    while True:
        ready, _, _ = select.select(watched, [], [])
        for s in ready:
            if s is sys.stdin:
                return
            if s.type == UDP:
                text, peer = s.recvfrom(65536)
                say("udp")
                outcome(s.sendto, text, peer)
            elif s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                watched.append(s.accept()[0])
            else:
                text = b""
                with contextlib.suppress(OSError):
                    text = s.recv(65536)
                if text:
                    say("tcp")
                    outcome(s.sendall, text)
                else:
                    watched.remove(s)
                    s.close()


def bound(port, address="0.0.0.0"):
    s = socket.socket(family_of(address), UDP)
    s.bind((address, port))
    return s


def serve(port):
    """Both protocols, both families."""
    sockets = [listen(port), bound(port)]
    for kind in (TCP, UDP):
        s = socket.socket(socket.AF_INET6, kind)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("::", port))
        if kind == TCP:
            s.listen(64)
        sockets.append(s)
    say("ready")
    answer(*sockets)


exec(sys.argv[1])
