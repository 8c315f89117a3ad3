"""Records that wait to be collected, in a file for each host: who kills the agent loses none of them."""

from __future__ import annotations

import os

from .lean import dumps, loads, suppress
from .place import read, remove, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_BYTES = 64 << 20  # half a million records a host


class Spool:
    """`directory/HOST` grows; what is handed out is `HOST.sent` until it has arrived, and comes again if it has not."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        os.makedirs(directory, mode=0o700, exist_ok=True)

    def append(self, host: str, records: list[bytes]) -> int:
        """Keep records; returns how many had no room."""
        path = self._path(host)
        with open(path, "ab") as file:
            if file.tell() > _MOST_BYTES:
                return len(records)
            file.write(b"".join(records))
        return 0

    def take(self, host: str) -> bytes:
        """All that waits, oldest first; `delivered` says that it arrived."""
        path = self._path(host)
        with suppress(FileNotFoundError):
            fresh = read(path)
            with open(f"{path}.sent", "ab") as file:
                file.write(fresh)
            remove(path)
        with suppress(FileNotFoundError):
            return read(f"{path}.sent")
        return b""

    def delivered(self, host: str) -> None:
        remove(f"{self._path(host)}.sent")

    def drop(self, host: str) -> None:
        for suffix in ("", ".sent", ".seen"):
            remove(self._path(host) + suffix)

    def remember(self, host: str, seen: dict[str, Any]) -> None:
        """Counters as they were told last, so that the next agent tells what came since."""
        write(f"{self._path(host)}.seen", dumps(seen))

    def remembered(self, host: str) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            found: dict[str, Any] = loads(read(f"{self._path(host)}.seen"))
            return found
        return {}

    def _path(self, host: str) -> str:
        return f"{self._directory}/{host}"
