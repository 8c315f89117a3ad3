"""Shoppers: each visit opens a connection, gets the front page and one more, and hangs up.

Two requests on one connection: the first carries the cost of a new connection, the second that of an established one,
as a browser's do. Visits go round the targets in turn, IPv4 and IPv6 alternating. A plain locustfile: it also runs by
`locust -f shop.py --host http://…`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import ClassVar

from locust import FastHttpUser, constant, task


class Shopper(FastHttpUser):
    """One of a pool: which shopper makes a visit does not matter."""

    requests_per_visit = 2
    connection_timeout = network_timeout = 3.0  # longer than the front end waits for those it calls
    max_redirects = 0  # a redirect would count as part of one request
    wait_time = constant(1)  # only when locust paces
    shops: ClassVar[Iterator[str] | None] = None

    def on_start(self) -> None:
        if Shopper.shops is None:
            targets = getattr(self.environment.parsed_options, "targets", None) or [{"url": self.host}]
            Shopper.shops = cycle([target["url"] for target in targets])

    @task
    def visit(self) -> None:
        assert Shopper.shops is not None
        shop = next(Shopper.shops)
        try:
            self.client.get(f"{shop}/", name="/")
            self.client.get(f"{shop}/bytes/2000", name="/page")
        finally:
            self.client.client.clientpool.close()  # hang up: the next visit is a new connection
