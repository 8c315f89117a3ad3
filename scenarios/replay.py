"""Recorded traffic again: each visit is one connection and one request to a service that the client really used.

Services are drawn by how often they were used. Whatever they were, here they speak the built-in service's HTTP, on
their own ports.
"""

from __future__ import annotations

import random
from itertools import accumulate
from typing import ClassVar

from locust import FastHttpUser, constant, task


class Client(FastHttpUser):
    """A recorded client: draws a service, asks it once, hangs up."""

    requests_per_visit = 1
    connection_timeout = network_timeout = 3.0
    max_redirects = 0
    wait_time = constant(1)  # only when locust paces

    rng: ClassVar[random.Random | None] = None  # one for all users: the order of services follows from the seed

    def on_start(self) -> None:
        options = self.environment.parsed_options
        Client.rng = Client.rng or random.Random(getattr(options, "seed", 0))
        targets = getattr(options, "targets", None) or [{"url": self.host}]
        self.urls = [target["url"] for target in targets]
        self.weights = list(accumulate(target.get("weight", 1) for target in targets))

    @task
    def ask(self) -> None:
        assert Client.rng is not None
        url = Client.rng.choices(self.urls, cum_weights=self.weights)[0]
        try:
            self.client.get(f"{url}/", name="replay")
        finally:
            self.client.client.clientpool.close()
