"""A client or a server for the daemon's tests; ends with its standard input. Says one JSON line when it is ready.

`UID serve PORT...` echoes on tcp and udp, both families; `UID ask PROTO ADDRESS PORT` makes one exchange and keeps
its socket open, so that the daemon can still find it.
"""

import errno
import json
import os
import selectors
import socket
import struct
import sys

DATAGRAM = {"tcp": False, "udp": True, "icmp": True}


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve(ports):
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    for port in ports:
        for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                sock = socket.socket(family, kind)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((anywhere, port))
                if kind == socket.SOCK_STREAM:
                    sock.listen(100)
                selector.register(sock, selectors.EVENT_READ, kind)
    say({"outcome": "serving"})
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                return
            if key.data == socket.SOCK_STREAM:
                selector.register(key.fileobj.accept()[0], selectors.EVENT_READ, "peer")
            elif key.data == socket.SOCK_DGRAM:
                data, peer = key.fileobj.recvfrom(2048)
                try:
                    key.fileobj.sendto(data, peer)
                except OSError:
                    continue  # the policy under test may refuse the answer
            else:
                echo(key.fileobj, selector)


def echo(sock, selector):
    try:
        data = sock.recv(65536)
    except OSError:
        data = b""
    if data:
        sock.sendall(data)
    else:
        selector.unregister(sock)
        sock.close()


def ask(proto, address, port, bind=""):
    family = family_of(address)
    sock = open_socket(proto, family)
    sock.settimeout(0.3)
    outcome = "OPEN"
    try:
        sock.connect((address, 0 if proto == "icmp" else int(port)))
        exchange(sock, proto, family)
    except TimeoutError:
        outcome = "TIMED_OUT"
    except OSError as err:
        outcome = errno.errorcode[err.errno]
    say({"outcome": outcome, "sport": sock.getsockname()[1]})
    for line in sys.stdin:  # once more, on the same socket, for each line
        try:
            exchange(sock, proto, family)
            say({"outcome": "OPEN"})
        except TimeoutError:
            say({"outcome": "TIMED_OUT"})
        except OSError as err:
            say({"outcome": errno.errorcode[err.errno], "line": line})
    sock.close()


def open_socket(proto, family):
    if proto == "icmp":
        return socket.socket(family, socket.SOCK_DGRAM, 58 if family == socket.AF_INET6 else 1)
    return socket.socket(family, socket.SOCK_DGRAM if DATAGRAM[proto] else socket.SOCK_STREAM)


def exchange(sock, proto, family):
    if proto == "icmp":
        sock.send(struct.pack("!BBHHH", 128 if family == socket.AF_INET6 else 8, 0, 0, 0, 1) + b"x" * 32)
    else:
        sock.sendall(b"x" * 32)
    if not sock.recv(2048):
        raise ConnectionResetError(errno.ECONNRESET, "closed")


def say(record):
    print(json.dumps(record), flush=True)


def main(uid, what, *arguments):
    os.setgroups([])
    os.setgid(int(uid))
    os.setuid(int(uid))
    if what == "serve":
        serve([int(port) for port in arguments])
    else:
        ask(*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
