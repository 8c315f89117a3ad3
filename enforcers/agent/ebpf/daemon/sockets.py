"""The socket between commands and agent: who is there, and descriptors that go along.

By `_socket`, which `socket` wraps: the wrapper makes enumerations of every constant there is, 4 ms of every command on
every host, and a megabyte of the agent.
"""

from __future__ import annotations

import _socket
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Socket = _socket.socket

_SO_NETNS_COOKIE = 71
_HANDLE = struct.Struct("=i")
_PEERCRED = struct.Struct("=iII")  # pid, uid, gid
if_nameindex = _socket.if_nameindex


def stream(fd: int = -1) -> Socket:
    """A Unix stream socket: a new one, or the one that `fd` stands for."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd if fd >= 0 else None)


def listening(path: str, waiting: int) -> Socket:
    listener = stream()
    listener.bind(path)
    listener.listen(waiting)
    return listener


def accepted(listener: Socket, timeout_s: float) -> Socket:
    client = stream(listener._accept()[0])  # type: ignore[attr-defined]  # what socket.accept calls
    client.settimeout(timeout_s)
    return client


def is_ours(peer: Socket) -> bool:
    """Whether the same user is at the other end."""
    said = peer.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _PEERCRED.size)
    return bool(_PEERCRED.unpack(said)[1] == os.geteuid())


def send_with(peer: Socket, data: bytes, handles: list[int]) -> None:
    """Send a first part with descriptors, which the other end gets copies of; then the rest."""
    packed = b"".join(map(_HANDLE.pack, handles))
    sent = peer.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)])
    if sent < len(data):  # who has it all may have answered and gone
        peer.sendall(data[sent:])


def receive_with(peer: Socket, at_most: int) -> tuple[bytes, list[int]]:
    """Some data, and the descriptors that came with it, which are the caller's to close."""
    space = _socket.CMSG_SPACE(at_most * _HANDLE.size)
    data, more, _, _ = peer.recvmsg(65536, space, _socket.MSG_CMSG_CLOEXEC)
    handles = []
    for level, kind, packed in more:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            whole = len(packed) - len(packed) % _HANDLE.size
            handles += [number for (number,) in _HANDLE.iter_unpack(packed[:whole])]
    return data, handles


def parts(peer: Socket) -> Iterator[bytes]:
    """All that comes until the other end says no more."""
    while data := peer.recv(1 << 20):
        yield data


def end_sending(peer: Socket) -> None:
    peer.shutdown(_socket.SHUT_WR)


def netns_cookie() -> int:
    """The number that the kernel programs know this network namespace by."""
    asked = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        return int(struct.unpack("Q", asked.getsockopt(_socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0])
    finally:
        asked.close()


def address_text(address: bytes) -> str:
    """An address of 4 or 16 bytes."""
    return _socket.inet_ntop(_socket.AF_INET if len(address) == 4 else _socket.AF_INET6, address)


def address_bytes(text: str) -> bytes:
    """16 bytes; IPv4 as ::ffff:a.b.c.d."""
    if ":" in text:
        return _socket.inet_pton(_socket.AF_INET6, text)
    return b"\0" * 10 + b"\xff\xff" + _socket.inet_aton(text)
