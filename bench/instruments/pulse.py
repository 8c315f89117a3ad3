"""A continuous probe: a few flows, tried all together at a fixed rate, whatever came of the tries before.

Open loop: a tick is sent when it is due although earlier ones still wait for an answer that a firewall swallowed. Each
try ends before TCP would ask again, so it is about the moment in which it was made. The services under command are
reached outside of the lab's network: what happens there cannot keep the probe from asking, nor its answers from us.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from bench.analysis.beats import RATE, TIMEOUT_S, Beat
from bench.instruments.probe import attempt
from lab.backends.base import Services
from lab.hosts.attempts import Attempt
from lab.model import Flow, Outcome, Topology

_AT_ONCE = 96  # ticks under way; with TIMEOUT_S no more than RATE * TIMEOUT_S of them wait


class Pulse:
    """Probes from `with` to its end. `beats` holds what has ended, in no order; whole only after the end."""

    def __init__(self, services: Services, topology: Topology, flows: Sequence[Flow], rate: float = RATE) -> None:
        self.beats: list[Beat] = []
        self.trouble: BaseException | None = None
        self._services, self._rate = services, rate
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._tried: tuple[tuple[Flow, Attempt], ...] = ()
        self.watch(flows, topology)
        self._pool = ThreadPoolExecutor(_AT_ONCE, "pulse")
        self._thread = threading.Thread(target=self._tick, name="pulse", daemon=True)

    def watch(self, flows: Sequence[Flow], topology: Topology) -> None:
        """From the next tick on try these, at the addresses that they have in `topology`."""
        self._tried = tuple((flow, attempt(flow, topology)) for flow in flows)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        """Ends when the last tick has come to its end. Raises what kept a tick from being tried, if nothing else is."""
        self._over.set()
        self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=err is not None)
        if self.trouble is not None and err is None:
            raise self.trouble

    def since(self, moment: float) -> list[Beat]:
        """What has ended of the tries made since a moment."""
        with self._lock:
            return [beat for beat in self.beats if beat.start >= moment]

    def _tick(self) -> None:
        begin, tick = time.monotonic(), 0
        while not self._over.wait(max(0.0, begin + tick / self._rate - time.monotonic())):
            if tried := self._tried:
                self._pool.submit(self._try, tick, tried).add_done_callback(self._heed)
            tick = max(tick + 1, int((time.monotonic() - begin) * self._rate))  # late: no burst to make up for it

    def _try(self, tick: int, tried: tuple[tuple[Flow, Attempt], ...]) -> None:
        got = self._services.probe([one for _flow, one in tried], TIMEOUT_S)
        beats = [Beat(tick, flow, a.start, Outcome(a.outcome), a.errno, a.arrived, a.total_us)
                 for (flow, _), a in zip(tried, got, strict=True)]
        with self._lock:
            self.beats += beats

    def _heed(self, done: Future[None]) -> None:
        if not done.cancelled() and (trouble := done.exception()):
            self.trouble = self.trouble or trouble
