"""A BPF ring buffer, read in bulk: what has come since the last time, as bytes, for whoever parses them later.

Standard library only, so that agents can carry it. A callback a record costs Python microseconds on the machine that is
measured; copying a ring's content costs nothing worth naming. Layout: kernel/bpf/ringbuf.c and libbpf's ringbuf.c.
"""

from __future__ import annotations

import ctypes
import mmap
import struct

from lab.bpf.syscall import Map

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_BUSY, _DISCARDED, _HEADER = 1 << 31, 1 << 30, 8
_WORD, _HEAD = struct.Struct("<Q"), struct.Struct("<I4x")


class Ring:
    """One ring by its map's descriptor, which stays the caller's. Readable (epoll) when it wants to be drained."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._size = Map(fd).entries
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # the producer's page, then the data twice, so that a record which wraps is in one piece
        self._producer = mmap.mmap(fd, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._position = ctypes.c_uint64.from_buffer(self._consumer)
        self._page = page

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        """Unmap it."""
        del self._position
        self._consumer.close()
        self._producer.close()

    def drain(self, keep: Callable[[bytes], object] | None = None) -> bytes:
        """All finished records since the last call: each with its 8-byte header, as `split` takes them.

        `keep` is given them while they are still in the ring: who dies before it returns leaves them to the next.
        """
        begin = self._position.value
        (end,) = _WORD.unpack_from(self._producer, 0)
        at = self._finished(begin, end)
        start = self._page + begin % self._size
        content = self._producer[start : start + at - begin]
        if keep is not None and content:
            keep(content)
        self._position.value = at
        return content

    def skip(self, content: bytes) -> None:
        """Go past `content`, of an earlier drain, where it is what comes next."""
        start = self._page + self._position.value % self._size
        if content and self._producer[start : start + len(content)] == content:
            self._position.value += len(content)

    def _finished(self, begin: int, end: int) -> int:
        """Where the first record begins that is still being written."""
        at, mask, base, ring = begin, self._size - 1, self._page, self._producer
        while at < end:
            (length,) = struct.unpack_from("<I", ring, base + (at & mask))
            if length & _BUSY:
                break
            at += ((length & ~_DISCARDED) + _HEADER + 7) & ~7
        return at


def joined(records: Iterable[bytes]) -> bytes:
    """The records as `split` takes them. Each of a size that is a multiple of 8."""
    return b"".join(_HEAD.pack(len(one)) + one for one in records)


def split(content: bytes) -> Iterator[bytes]:
    """The records of what `Ring.drain` gave, without headers and without those that were discarded."""
    at = 0
    while at < len(content):
        (length,) = struct.unpack_from("<I", content, at)
        size = length & ~_DISCARDED
        if not length & _DISCARDED:
            yield content[at + _HEADER : at + _HEADER + size]
        at += (size + _HEADER + 7) & ~7
