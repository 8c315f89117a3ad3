"""Executables that rules name, looked at as soon as somebody has written or moved one into place.

Its first connection finds it named then; told by the execution alone, it could come before the agent has read it.
"""

from __future__ import annotations

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_EVENT = struct.Struct("iIII")
_CLOSE_WRITE, _MOVED_TO, _ATTRIB = 0x8, 0x80, 0x4
_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC


class Watches:
    """Directories by host; `due` gives what changed in them as (host, path)."""

    def __init__(self) -> None:
        self._fd = _libc.inotify_init1(_NONBLOCK | _CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1: too many watchers; see fs.inotify.max_user_instances")
        self._watched: dict[int, tuple[str, str]] = {}

    def fileno(self) -> int:
        return int(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def watch(self, host: str, directory: str, handle: int) -> None:
        """Watch `directory` of `host`, open as `handle`."""
        path = f"/proc/self/fd/{handle}".encode()
        number = _libc.inotify_add_watch(self._fd, path, _CLOSE_WRITE | _MOVED_TO | _ATTRIB)
        if number >= 0:  # without a watch the execution still tells
            self._watched[number] = (host, directory)

    def forget(self, host: str) -> None:
        for number in [number for number, (name, _) in self._watched.items() if name == host]:
            _libc.inotify_rm_watch(self._fd, number)
            del self._watched[number]

    def due(self) -> set[tuple[str, str]]:
        """Files that changed since the last call."""
        found: set[tuple[str, str]] = set()
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return found
            at = 0
            while at < len(data):
                number, _, _, size = _EVENT.unpack_from(data, at)
                name = data[at + _EVENT.size: at + _EVENT.size + size].rstrip(b"\0").decode(errors="surrogateescape")
                at += _EVENT.size + size
                if number in self._watched and name:
                    host, directory = self._watched[number]
                    found.add((host, f"{directory}/{name}"))
