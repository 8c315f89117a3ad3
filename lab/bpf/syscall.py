"""bpf(2): maps, links, pins and statistics, without a library. Standard library only, so that agents can carry it.

Agents import it in every command: so no contextlib, platform or typing, each of which takes longer than a system call.
Numbers and layouts are those of include/uapi/linux/bpf.h. Every call raises OSError.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

StrPath = str | os.PathLike[str]
HASH, ARRAY, LPM_TRIE, RINGBUF = 1, 2, 11, 27
NO_PREALLOC = 1
ANY, NOEXIST = 0, 1
TCX_INGRESS, TCX_EGRESS = 46, 47
_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _OBJ_PIN, _OBJ_GET, _MAP_BY_ID = 0, 1, 2, 3, 4, 6, 7, 14
_INFO, _LOOKUP_BATCH, _UPDATE_BATCH, _DELETE_BATCH = 15, 24, 26, 27
_LINK_CREATE, _ENABLE_STATS, _ITER_CREATE = 28, 32, 33
_TRACE_ITER = 28
_BATCHED = (HASH, 9)  # 9: LRU_HASH
_SIZE = 128
_MACHINE = os.uname().machine
_NUMBER = {"x86_64": 321, "aarch64": 280}.get(_MACHINE, 0)
_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes | bytearray) -> tuple[int, bytes]:
    """Call bpf(2); returns its result and what it left in `attributes`. Raises OSError."""
    if not _NUMBER:
        raise OSError(errno.ENOSYS, f"the number of bpf(2) on {_MACHINE} is not known here")
    attr = ctypes.create_string_buffer(bytes(attributes), _SIZE)
    result: int = _libc.syscall(_NUMBER, command, attr, _SIZE)
    if result < 0:
        err = ctypes.get_errno()
        raise OSError(err, os.strerror(err))
    return result, attr.raw


def address(buffer: object) -> int:
    """Where a ctypes buffer lies."""
    return ctypes.addressof(buffer)  # type: ignore[arg-type]


def create_map(kind: int, key_size: int, value_size: int, entries: int, flags: int = 0, name: str = "") -> int:
    """A new map, as a descriptor. `name`: at most 15 letters, digits, dots and underscores."""
    attributes = struct.pack("<IIIIIII16s", kind, key_size, value_size, entries, flags, 0, 0, name.encode()[:15])
    return bpf(_MAP_CREATE, attributes)[0]


def map_by_id(number: int) -> int:
    """The map with that id, as a descriptor: what a map of maps tells of its inner ones."""
    return bpf(_MAP_BY_ID, struct.pack("<I", number))[0]


def info(fd: int, size: int = 256) -> bytes:
    """`struct bpf_map_info`, `bpf_prog_info` or `bpf_link_info` of a descriptor."""
    buffer = ctypes.create_string_buffer(size)
    bpf(_INFO, struct.pack("<IIQ", fd, size, address(buffer)))
    return buffer.raw


def pin(fd: int, path: StrPath) -> None:
    """Keep an object under a name in a bpf file system, until that is unlinked."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    bpf(_OBJ_PIN, struct.pack("<QI", address(name), fd))


def pinned(path: StrPath) -> int:
    """The object pinned at `path`, as a descriptor."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return bpf(_OBJ_GET, struct.pack("<QI", address(name), 0))[0]


def link(prog: int, target: int, attach_type: int) -> int:
    """Attach a program to a control group (a descriptor) or an interface (its index), as a link."""
    return bpf(_LINK_CREATE, struct.pack("<IIII", prog, target, attach_type, 0))[0]


def iterator(prog: int, limit: object = None) -> int:
    """An iterator as a link: whoever opens the path that it is pinned at runs it over their own namespaces."""
    size = ctypes.sizeof(limit) if limit is not None else 0  # type: ignore[arg-type]
    return bpf(_LINK_CREATE, struct.pack("<IIIIQI", prog, 0, _TRACE_ITER, 0, address(limit) if size else 0, size))[0]


def iterate(prog: int, *, map_fd: int | None = None, pid: int | None = None) -> bytes:
    """Run an iterator once over the caller's namespaces, a map, or the files of one process; what it wrote."""
    words = ctypes.create_string_buffer(struct.pack("<IIII", map_fd if map_fd is not None else 0, pid or 0, 0, 0), 16)
    if pid is not None:  # bpf_iter_link_info.task is {tid, pid, pid_fd}
        words.raw = struct.pack("<IIII", 0, pid, 0, 0)
    fd = iterator(prog, words if map_fd is not None or pid is not None else None)
    try:
        with os.fdopen(bpf(_ITER_CREATE, struct.pack("<II", fd, 0))[0], "rb", buffering=0) as items:
            return b"".join(iter(lambda: items.read(1 << 16), b""))
    finally:
        os.close(fd)


class run_statistics:  # noqa: N801  # a context manager; contextlib's would be loaded by every agent
    """While it lasts, the kernel counts the runs and the time of every program (`run_cost`)."""

    def __enter__(self) -> None:
        self._fd = bpf(_ENABLE_STATS, struct.pack("<I", 0))[0]

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def run_cost(prog: int) -> tuple[int, int]:
    """How often a program ran, and for how many nanoseconds, while statistics were on."""
    run_time, count = struct.unpack_from("<QQ", info(prog), 192)
    return count, run_time


def program_name(prog: int) -> str:
    """A program's name, cut to 15 letters by the kernel."""
    return info(prog)[64:80].rstrip(b"\0").decode()


class Map:
    """A map by its descriptor: keys and values are bytes of fixed size."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.kind, _id, self.key_size, self.value_size, self.entries, self.flags = struct.unpack_from("<6I", info(fd))

    @classmethod
    def at(cls, path: StrPath) -> Map:
        """The map pinned at `path`."""
        return cls(pinned(path))

    def close(self) -> None:
        os.close(self.fd)

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        asked, value = ctypes.create_string_buffer(key, self.key_size), ctypes.create_string_buffer(self.value_size)
        try:
            bpf(_LOOKUP, struct.pack("<IIQQQ", self.fd, 0, address(asked), address(value), 0))
        except FileNotFoundError:
            return None
        return value.raw

    def put(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Set one value, at once for whoever looks (hashes: replaced whole)."""
        key_buffer = ctypes.create_string_buffer(key, self.key_size)
        value_buffer = ctypes.create_string_buffer(value, len(value))
        bpf(_UPDATE, struct.pack("<IIQQQ", self.fd, 0, address(key_buffer), address(value_buffer), flags))

    def delete(self, key: bytes) -> bool:
        """Remove `key`; whether it was there."""
        asked = ctypes.create_string_buffer(key, self.key_size)
        try:
            bpf(_DELETE, struct.pack("<IIQ", self.fd, 0, address(asked)))
        except FileNotFoundError:
            return False
        return True

    def keys(self) -> list[bytes]:
        """Every key."""
        return [key for key, _value in self.items()]

    def items(self) -> list[tuple[bytes, bytes]]:
        """Every key with its value. Hashes are read in batches; others key by key."""
        if self.kind in _BATCHED:
            return self._items_in_batches()
        found, key = [], None
        while (key := self._next(key)) is not None:
            value = self.get(key)
            if value is not None:
                found.append((key, value))
        return found

    def put_many(self, keys: bytes, values: bytes) -> None:
        """Set as many values as `keys` and `values`, packed one after the other, hold: one system call."""
        self._batch(_UPDATE_BATCH, keys, values)

    def delete_many(self, keys: bytes) -> None:
        """Remove packed keys that are all there."""
        self._batch(_DELETE_BATCH, keys, b"")

    def replace(self, keys: bytes, values: bytes) -> None:
        """Make these its only entries: what is not among them goes, what is there is overwritten."""
        form = struct.Struct(f"{self.key_size}s")
        stale = {key for (key,) in form.iter_unpack(self._packed_keys())}
        if stale and keys:
            stale.difference_update(key for (key,) in form.iter_unpack(keys))
        if self.kind == HASH:
            self.delete_many(b"".join(stale))
        else:
            for key in stale:
                self.delete(key)
        self.put_many(keys, values)

    # --- parts ---

    def _batch(self, command: int, keys: bytes, values: bytes) -> None:
        count = len(keys) // self.key_size
        if count == 0:
            return
        key_buffer = (ctypes.c_char * len(keys)).from_buffer_copy(keys)
        value_buffer = (ctypes.c_char * max(len(values), 1)).from_buffer_copy(values or b"\0")
        bpf(command, struct.pack("<QQQQIIQQ", 0, 0, address(key_buffer), address(value_buffer), count, self.fd, 0, 0))

    def _next(self, key: bytes | None) -> bytes | None:
        before = ctypes.create_string_buffer(key, self.key_size) if key is not None else None
        after = ctypes.create_string_buffer(self.key_size)
        try:
            bpf(_NEXT_KEY, struct.pack("<IIQQ", self.fd, 0, address(before) if before else 0, address(after)))
        except FileNotFoundError:
            return None
        return after.raw

    def _packed_keys(self) -> bytes:
        if self.kind not in _BATCHED:
            return b"".join(self.keys())
        return b"".join(keys for keys, _values in self._batches())

    def _items_in_batches(self) -> list[tuple[bytes, bytes]]:
        key, value = struct.Struct(f"{self.key_size}s"), struct.Struct(f"{self.value_size}s")
        return [(k, v) for keys, values in self._batches()
                for (k,), (v,) in zip(key.iter_unpack(keys), value.iter_unpack(values), strict=True)]

    def _batches(self, at_once: int = 16384) -> Iterator[tuple[bytes, bytes]]:
        """What it holds, in packed keys and values of at most `at_once` entries."""
        keys = ctypes.create_string_buffer(self.key_size * at_once)
        values = ctypes.create_string_buffer(self.value_size * at_once)
        cursor = ctypes.create_string_buffer(64)
        before = 0
        while True:
            attr = ctypes.create_string_buffer(struct.pack(
                "<QQQQIIQQ", before, address(cursor), address(keys), address(values), at_once, self.fd, 0, 0), _SIZE)
            done: int = _libc.syscall(_NUMBER, _LOOKUP_BATCH, attr, _SIZE)
            err = ctypes.get_errno() if done < 0 else 0
            if err not in (0, errno.ENOENT):
                raise OSError(err, os.strerror(err))
            (count,) = struct.unpack_from("<I", attr.raw, 32)
            yield (ctypes.string_at(keys, count * self.key_size), ctypes.string_at(values, count * self.value_size))
            if err == errno.ENOENT:
                return
            before = address(cursor)
