"""The attacker takes all that can be taken, the same way each time, and tries a host no more once it is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.instruments import attack
from lab.backends.fake import FakeServices, up
from lab.hosts.attempts import Attempt, Exploited
from lab.scenario import load

SCENARIO = load(Path(__file__).parents[2] / "scenarios" / "three-tier.yaml")


class Counting:
    """The fake's services, counting the rounds of exploits."""

    def __init__(self, inner: FakeServices) -> None:
        self._inner, self.rounds = inner, 0
        self.tried: list[tuple[str, str, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def exploit_all(self, attempts: Sequence[Attempt], nonces: Sequence[int], timeout_s: float) -> list[Exploited]:
        assert len(set(nonces)) == len(attempts), "a nonce that comes twice proves nothing"
        self.rounds += 1
        self.tried += [(str(a.actor), a.address, a.port) for a in attempts]
        return self._inner.exploit_all(attempts, nonces, timeout_s)


def walked() -> tuple[attack.Campaign, Counting]:
    assert SCENARIO.attack is not None
    with up(SCENARIO.topology, {}) as testbed:
        services = Counting(testbed.services)
        return attack.run(services, SCENARIO.attack, SCENARIO.topology, 7), services


def test_with_nothing_enforced_all_that_is_vulnerable_is_taken() -> None:
    campaign, services = walked()
    topology = SCENARIO.topology
    weak = {name for name, host in topology.hosts.items() if any(topology.processes[p].vulnerable for p in host.runs)}
    assert set(campaign.taken) == weak | {campaign.taken[0]}
    assert campaign.reached and set(campaign.by_process) == set(campaign.taken)
    assert services.rounds < len(services.tried)


def test_the_same_seed_gives_the_same_walk() -> None:
    (one, _), (two, _) = walked(), walked()
    assert [replace(step, after_s=0.0) for step in one.steps] == [replace(step, after_s=0.0) for step in two.steps]
    assert one.taken == two.taken and one.attempts == two.attempts


def test_no_port_is_tried_after_its_host_was_taken_from_there() -> None:
    campaign, services = walked()
    assert len(services.tried) == len(set(services.tried))
    per_channel = {(step.source, step.channel, step.target) for step in campaign.steps}
    assert len(per_channel) == len(campaign.steps)
