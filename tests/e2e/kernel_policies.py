"""The policies that the tests of the kernel side start from."""

from __future__ import annotations

from tests.e2e.kernel_lab import KERNEL, OUT, Bench

HTTP, DNS, ICMP = 30, 31, 3  # service classes
A_ASKS = {(11, 20, 0, HTTP | OUT): (1, True, 0), (11, 20, 0, DNS | OUT): (2, True, 0),
          (11, 20, KERNEL, ICMP | OUT): (3, True, 0)}
B_SERVES = {(11, 21, 0, HTTP): (1, True, 0), (11, 21, 0, DNS): (2, True, 0), (11, KERNEL, 0, ICMP): (3, True, 0)}


def usual(w: Bench) -> None:
    """`asker` on a may ask `server` on b: 80/tcp, 80/udp, icmp. Nothing else passes."""
    w.kernel.apply(w.a, w.rules(w.a, verdicts=A_ASKS))
    w.kernel.apply(w.b, w.rules(w.b, verdicts=B_SERVES))


def everybody_asks(w: Bench) -> None:
    """On a all may; only b judges."""
    w.kernel.apply(w.a, w.rules(w.a, default=True))
