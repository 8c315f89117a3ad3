"""Records that wait to be asked for, in files: who kills the daemon loses none of them.

Each drain of the ring is one chunk, its length before it. A daemon that dies amid a write has left the ring as it was,
so the next one writes the same records again, to a file of its own; the torn chunk is not looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_LENGTH = struct.Struct("=I")
_PARTS = 8  # full files that make up the whole: the oldest goes where there is no room


class Spool:
    """At most `most` bytes in `directory`, beside what else is there. `lost` counts bytes that had to go."""

    def __init__(self, directory: Path, most: int) -> None:
        self._directory, self._most, self._part_bytes = directory, most, most // _PARTS
        self._parts = {int(path.suffix[1:]): path.stat().st_size for path in directory.glob("spool.*")}
        self._next = max(self._parts, default=0) + 1
        self._current = 0  # the number of the file that is written to; a dead daemon's is not gone on with
        self.lost = 0

    def append(self, content: bytes) -> None:
        """Keep the content of a ring. Raises OSError where the disk has no room; a file torn so is not gone on with."""
        if not self._current or self._parts[self._current] + len(content) > self._part_bytes:
            self._begin()
        try:
            with self._path(self._current).open("ab") as file:
                file.write(_LENGTH.pack(len(content)) + content)
        except OSError:
            self._current = 0
            raise
        self._parts[self._current] += len(content)

    def last(self) -> bytes:
        """The last portion that is kept, empty where none is."""
        for number in sorted(self._parts, reverse=True):
            chunks = list(_chunks(self._path(number).read_bytes()))
            if chunks:
                return chunks[-1]
        return b""

    def take(self) -> Iterator[bytes]:
        """All that waits, the oldest first, in the portions that it came in. It is handed out once."""
        for number in sorted(self._parts):
            yield from _chunks(self._path(number).read_bytes())
        self.clear()

    def clear(self) -> None:
        for number in self._parts:
            self._path(number).unlink(missing_ok=True)
        self._parts.clear()
        self._current = 0

    def _begin(self) -> None:
        """By bytes, not by files: daemons that are killed leave as many as they like."""
        while sum(self._parts.values()) > self._most - self._part_bytes:
            oldest = min(self._parts)
            self.lost += self._parts.pop(oldest)
            self._path(oldest).unlink(missing_ok=True)
        self._current, self._next = self._next, self._next + 1
        self._parts[self._current] = 0

    def _path(self, number: int) -> Path:
        return self._directory / f"spool.{number}"


def _chunks(content: bytes) -> Iterator[bytes]:
    at = 0
    while at + _LENGTH.size <= len(content):
        (length,) = _LENGTH.unpack_from(content, at)
        at += _LENGTH.size
        if at + length > len(content):
            return
        yield content[at:at + length]
        at += length
