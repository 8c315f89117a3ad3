"""The contents of built-in executables that scenarios tell apart: the service as it was compiled, and tampered with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from lab.model import ORIGINAL, REWRITTEN, Topology

_TAIL = b"tampered with\n"  # after the end of the program proper, so that it runs as before


@dataclass(frozen=True, slots=True)
class Contents:
    """SHA-256 of both, in hexadecimal."""

    original: str
    rewritten: str


@lru_cache(maxsize=4)
def of(service: Path) -> Contents:
    """Of a compiled service, whose name carries a digest of its sources. Raises OSError."""
    return Contents(_digest(service.read_bytes()), _digest(rewritten(service)))


def rewritten(service: Path) -> bytes:
    """The executable tampered with."""
    return service.read_bytes() + _TAIL


def resolved(topology: Topology, service: Path) -> Topology:
    """The topology with digests in place of ORIGINAL and REWRITTEN."""
    known = of(service)
    digests = {ORIGINAL: known.original, REWRITTEN: known.rewritten}
    processes = {name: replace(process, sha256=digests.get(process.sha256 or "", process.sha256))
                 for name, process in topology.processes.items()}
    return replace(topology, processes=processes)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
