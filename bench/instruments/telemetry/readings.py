"""An arm's own records, read every so often while it stands: what each reading brought, and when."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from lab.model import Sighting

Read = Callable[[], tuple[Sequence[Sighting], int]]  # what was told since the last time, and how much was lost in all


@dataclass(slots=True)
class Readings:
    """(when a reading was over, what it brought), in order. `failed`: why reading stopped before its time."""

    found: list[tuple[float, Sequence[Sighting]]] = field(default_factory=list)
    lost: int = 0
    failed: str = ""


@contextlib.contextmanager
def reading(read: Read, every_s: float) -> Iterator[Readings]:
    """Read every `every_s` seconds while the body runs, and once at its end."""
    readings, over = Readings(), threading.Event()

    def loop() -> None:
        due = time.monotonic() + every_s
        last = False
        while not last:
            last = over.wait(max(0.0, due - time.monotonic()))
            try:
                sightings, readings.lost = read()
            except (OSError, ValueError, RuntimeError) as err:
                readings.failed = str(err) or type(err).__name__
                return
            readings.found.append((time.monotonic(), sightings))
            due += every_s

    thread = threading.Thread(target=loop, name="readings", daemon=True)
    thread.start()
    try:
        yield readings
    finally:
        over.set()
        thread.join()
