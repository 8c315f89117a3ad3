"""Small clients and receivers that run on a host as a declared user: UDP stream, TLS handshakes, held connections.

A program of its own, standard library only. It prints one JSON line when it is ready ({"ready": …}), where somebody
waits for that, and one with its figures.

    udp-receive FAMILY PORT          until standard input ends
    udp-send ADDRESS PORT RATE SECONDS SIZE
    tls ADDRESS PORT SECONDS         new handshakes one after the other, TLS 1.3, no resumption, closed by reset
    hold ADDRESS PORT MOST STEP_S    opens up to MOST connections and keeps all of them; then asks each once
"""

import contextlib
import json
import os
import resource
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable

_STAMP = struct.Struct("<4sIQ")  # magic, sequence number, nanoseconds of CLOCK_REALTIME when it was sent
_MAGIC = b"lbUD"
_SO_TIMESTAMPNS = 35
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, for no time
_QUIET_S = 0.2  # after the sender's end nothing more is expected for so long
_PING = b"p" * 64  # the built-in service echoes what is neither a probe nor HTTP


def say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def udp_receive(family: str, port: str) -> None:
    """Count and stamp what arrives; jitter as in RFC 3550, 6.4.1: J += (|D| - J) / 16, by the kernel's own stamps."""
    kind = socket.AF_INET if family == "4" else socket.AF_INET6
    with socket.socket(kind, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        if kind == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("0.0.0.0" if kind == socket.AF_INET else "::", int(port)))
        say(ready="udp")
        seen: set[int] = set()
        transits: list[float] = []
        n = reordered = size = 0
        last, jitter, before = -1, 0.0, None
        ending = None
        while ending is None or time.monotonic() < ending:
            ready, _, _ = select.select([sock, *([] if ending else [sys.stdin])], [], [], 0.05)
            if sys.stdin in ready:  # it ended; what is on its way still counts
                ending = time.monotonic() + _QUIET_S
            if sock not in ready:
                continue
            data, extra, _flags, _peer = sock.recvmsg(2048, 64)
            if len(data) < _STAMP.size or data[:4] != _MAGIC:
                continue
            _magic, number, sent = _STAMP.unpack_from(data)
            s, ns = struct.unpack("ll", extra[0][2][:16])
            n, size = n + 1, size + len(data)
            reordered += number < last
            last = max(last, number)
            seen.add(number)
            transit = (s * 10**9 + ns - sent) / 1e3
            transits.append(round(transit, 1))
            if before is not None:
                jitter += (abs(transit - before) - jitter) / 16
            before = transit
    say(received=n, unique=len(seen), reordered=reordered, bytes=size, jitter_us=jitter, transits_us=transits)


def udp_send(address: str, port: str, rate: str, seconds: str, size: str) -> None:
    """Datagrams at even intervals, by the clock; refusals of the own kernel are counted."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    n = max(1, round(float(rate) * float(seconds)))
    interval = 1 / float(rate)
    filler = b"u" * (int(size) - _STAMP.size)
    sent = refused = 0
    worst = 0.0
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        begin = time.monotonic()
        for number in range(n):
            due = begin + number * interval
            while (early := due - time.monotonic()) > 0:
                time.sleep(early if early > 0.0002 else 0)
            worst = max(worst, -early)
            try:
                # Not connected: an ICMP error about one datagram would keep the next from being sent.
                sock.sendto(_STAMP.pack(_MAGIC, number, time.time_ns()) + filler, (address, int(port)))
                sent += 1
            except OSError:  # its own host refused it
                refused += 1
        took = time.monotonic() - begin
    say(sent=sent, refused=refused, tried=n, seconds=took, late_us=worst * 1e6)


def tls(address: str, port: str, seconds: str) -> None:
    """As many handshakes as go one after the other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    took: list[float] = []
    errors, cipher = 0, ""
    cpu, begin = time.process_time(), time.monotonic()
    while (at := time.monotonic()) < begin + float(seconds):
        try:
            with socket.create_connection((address, int(port)), timeout=2.0) as plain:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                with context.wrap_socket(plain) as secured:
                    took.append(round((time.monotonic() - at) * 1e6, 1))
                    cipher = cipher or f"{secured.version()} {(secured.cipher() or ('',))[0]}"
        except OSError:
            errors += 1
    say(handshakes=len(took), errors=errors, seconds=time.monotonic() - begin, took_us=took, cipher=cipher,
        cpu_s=time.process_time() - cpu, library=ssl.OPENSSL_VERSION)


def hold(address: str, port: str, most: str, step_s: str) -> None:
    """Open connections until `most` are open, one fails or the time is up; `open`: answered while all were open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted = min(int(most), hard - 16)
    held: list[socket.socket] = []
    why = "as many as were asked for" if wanted == int(most) else f"the limit of open files is {soft}, at most {hard}"
    begin = time.monotonic()
    while len(held) < wanted:
        if time.monotonic() > begin + float(step_s):
            why = f"the time of {step_s} s was up"
            break
        try:
            held.append(socket.create_connection((address, int(port)), timeout=1.0))
        except OSError as error:
            why = f"connect: {os.strerror(error.errno) if error.errno else error}"
            break
    opening = time.monotonic() - begin
    alive = 0
    for one in held:
        with contextlib.suppress(OSError):
            one.settimeout(1.0)
            one.sendall(_PING)
    for one in held:
        with contextlib.suppress(OSError):
            alive += one.recv(len(_PING)) != b""
    for one in held:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        one.close()
    say(opened=len(held), open=alive, seconds=opening, why=why)


if __name__ == "__main__":
    programs: dict[str, Callable[..., None]] = {"udp-receive": udp_receive, "udp-send": udp_send, "tls": tls,
                                                "hold": hold}
    programs[sys.argv[1]](*sys.argv[2:])
