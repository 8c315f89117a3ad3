"""Which executable a file is: its path on the host and, where a rule asks for it, the SHA-256 of its content.

The kernel knows a file by (inode number, device, time of its last change); whatever writes to it, renames it or links
it changes that time, so the key names one content under one path. Nobody has looked at a new key until this has, and
until then the kernel treats the executable as one that no rule allows.
"""

from __future__ import annotations

import _sha256  # type: ignore[import-not-found]  # hashlib loads libcrypto, as large as the rest of the agent
import ctypes
import os
import struct

from .lean import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_OPENAT2, _RESOLVE_IN_ROOT = 437, 0x10
_CHUNK = 1 << 20
_BITS = 0x7FFFFFFF
_libc = ctypes.CDLL(None, use_errno=True)


class Key:
    """What the kernel knows a file by: `ino`, `dev` as the kernel numbers devices, seconds and nanoseconds of ctime."""

    __slots__ = ("dev", "ino", "nsec", "sec")

    def __init__(self, ino: int, dev: int, sec: int, nsec: int) -> None:
        self.ino, self.dev, self.sec, self.nsec = ino, dev, sec, nsec

    @classmethod
    def of(cls, fd: int) -> Key:
        found = os.fstat(fd)
        sec, nsec = divmod(found.st_ctime_ns, 1_000_000_000)
        return cls(found.st_ino, os.major(found.st_dev) << 20 | os.minor(found.st_dev), sec, nsec)

    def as_tuple(self) -> tuple[int, int, int, int]:
        return self.ino, self.dev, self.sec, self.nsec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.as_tuple() == other.as_tuple()

    def __hash__(self) -> int:
        return hash(self.as_tuple())


class Named:
    """An executable: its path, its content, and the number that rules and telemetry call it by."""

    __slots__ = ("id", "path", "sha256")

    def __init__(self, path: str, sha256: str, number: int) -> None:
        self.path, self.sha256, self.id = path, sha256, number


class Executables:
    """Every executable that was looked at, by key. `hashed` counts contents that were read."""

    def __init__(self) -> None:
        self.by_key: dict[Key, Named] = {}
        self.paths: dict[int, str] = {}
        self.hashed = 0
        self._contents: dict[str, set[str]] = {}  # by path, the contents that some rule asks for

    def expect(self, named: Iterable[tuple[str, str | None]]) -> None:
        """Contents that a policy tells apart: an executable of such a path and content has a number of its own."""
        for path, sha256 in named:
            if sha256:
                self._contents.setdefault(path, set()).add(sha256)

    def look(self, fd: int, path: str) -> tuple[Key, Named]:
        """Name the open file `fd`, known on its host as `path`. Raises OSError."""
        while True:
            key = Key.of(fd)
            found, asked = self.by_key.get(key), self._contents.get(path, ())
            known = found is not None and found.path == path
            digest = found.sha256 if found is not None and known else ""
            if asked and not digest:  # of 200 hosts' executables reading all would be most of what naming takes
                digest = self._hash(fd)
            if Key.of(fd) == key:  # nobody wrote to it meanwhile
                break
        number = number_of(path, digest if digest in asked else "")
        if found is not None and known and (found.sha256, found.id) == (digest, number):
            return key, found
        named = self.by_key[key] = Named(path, digest, number)
        self.paths[number] = path
        return key, named

    def _hash(self, fd: int) -> str:
        self.hashed += 1
        digest, offset = _sha256.sha256(), 0
        while part := os.pread(fd, _CHUNK, offset):
            digest.update(part)
            offset += len(part)
        return str(digest.hexdigest())


def number_of(path: str, sha256: str = "") -> int:
    """The number of an executable: as `Executable.id` in the compiler, so that agents agree without talking."""
    digest = _sha256.sha256(f"{path}\0{sha256}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & _BITS or 1  # the top bit is the kernel's, for what nobody has named


def open_on(root: int, path: str) -> int:
    """Open `path` for reading as a host sees it whose root directory is `root`; its links do not lead out of it."""
    how = struct.pack("QQQ", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, 0, _RESOLVE_IN_ROOT)
    fd = _libc.syscall(_OPENAT2, root, path.encode(), how, len(how))
    if fd < 0:
        err = ctypes.get_errno()
        raise OSError(err, os.strerror(err), path)
    return int(fd)


def running(proc: int, pid: int) -> tuple[int, str]:
    """The executable of a process, open, and its path on its host. Raises OSError where it is gone."""
    path = os.readlink(f"{pid}/exe", dir_fd=proc)
    return os.open(f"{pid}/exe", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc), path.removesuffix(" (deleted)")


def processes(proc: int) -> list[int]:
    """The processes of a host, by its own numbers."""
    with suppress(OSError):
        return [int(name) for name in os.listdir(proc) if name.isdigit()]
    return []
