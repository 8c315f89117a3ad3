"""How fast one processor is at this moment, told by kernel work that no enforcer touches."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

TRIES, EXCHANGES = 5, 20
_PAYLOAD = b"x" * 64


class Yardstick:
    """Datagrams through the loopback of the run's own namespace, on processor `cpu`.

    A reading takes about 1.5 ms. See `bench.analysis.yardstick` for what is done with it.
    """

    def __init__(self, cpu: int) -> None:
        self.cpu = cpu
        self._to, self._from = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        self._from.bind(("127.0.0.1", 0))
        self._from.settimeout(1.0)
        self._to.connect(self._from.getsockname())

    def read(self) -> float:
        """Microseconds for twenty exchanges: the least of five tries.

        The least, so that a preemption, which an arm's daemon may cause, is not taken for a slow machine. Raises
        TimeoutError where the loopback does not answer.
        """
        with self._here():
            return min(self._try() for _ in range(TRIES))

    def close(self) -> None:
        self._to.close()
        self._from.close()

    def _try(self) -> float:
        begin = time.perf_counter_ns()
        for _ in range(EXCHANGES):
            self._to.send(_PAYLOAD)
            self._from.recv(len(_PAYLOAD))
        return (time.perf_counter_ns() - begin) / 1e3

    @contextlib.contextmanager
    def _here(self) -> Iterator[None]:
        """The calling thread on that processor, and then where it was."""
        home = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self.cpu})
        try:
            yield
        finally:
            os.sched_setaffinity(0, home)
