"""200 hosts, all pairs: all is open with nothing enforced, and what a planted rule drops is told apart from it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.isolated import ROOT, call, needs_root

HOSTS, SEGMENTS, DROPPED = 200, 4, 0.3


def scenario_text(hosts: int = HOSTS) -> str:
    each = hosts // SEGMENTS
    segments = "".join(f"    s{i}: {{v4: 10.{20 + i}.0.0/16, v6: 'fd20:{i}::/64'}}\n" for i in range(SEGMENTS))
    members = "".join(f"    h{i}: {{segment: s{i}, count: {each}, labels: {{role: peer}}, runs: [svc]}}\n"
                      for i in range(SEGMENTS))
    return (f"version: 1\nname: scale\ntopology:\n  segments:\n{segments}  hosts:\n{members}"
            "processes:\n  svc: {exe: /opt/svc, listens: [7000/tcp]}\n"
            "policy:\n  default: deny\n  rules:\n"
            "    - {name: all, allow: {from: {role: peer}, to: {role: peer}, service: 7000/tcp}}\n"
            "arms: [none]\n")


def all_pairs(me: Any, argument: dict[str, float]) -> dict[str, Any]:
    """In the lab: try every ordered pair once, in random order, `dropped` of them silently dropped at the target."""
    from bench.instruments.probe import probe
    from lab.backends import mininet_lab
    from lab.hosts.build import build
    from lab.hosts.roles import actors
    from lab.model import Flow
    from lab.scenario import loads

    scenario = loads(scenario_text(), "scale.yaml")
    topology = scenario.topology
    begin = time.monotonic()
    with mininet_lab.up(topology, build(), me.cgroup, actors(topology)) as testbed:
        up_s = time.monotonic() - begin
        pairs = [(a, b) for a in topology.hosts for b in topology.hosts if a != b]
        rng = random.Random(1)
        rng.shuffle(pairs)
        planted = set(rng.sample(pairs, int(len(pairs) * argument["dropped"])))
        for target in topology.hosts:
            sources = [topology.hosts[a].v4 for a, b in planted if b == target]
            if sources:
                rules = (f"table ip planted {{\n set s {{ type ipv4_addr; elements = {{ {', '.join(sources)} }}; }}\n"
                         " chain c { type filter hook input priority 0; ip saddr @s tcp dport 7000 drop; }\n}\n")
                done = testbed.run(target, ["nft", "-f", "-"], input=rules.encode())
                assert done.status == 0, done.stderr
        flows = [Flow(a, "svc", topology.processes["svc"].user, b, "svc", "tcp", 7000, 4) for a, b in pairs]
        begin = time.monotonic()
        seen = probe(testbed.services, flows, topology, window=20_000).observations
        took = time.monotonic() - begin
    outcomes = {name: Counter(str(o.outcome) for o, pair in zip(seen, pairs, strict=True)
                              if (pair in planted) == (name == "planted")) for name in ("planted", "free")}
    arrived = sum(o.arrived for o, pair in zip(seen, pairs, strict=True) if pair in planted)
    return {"up_s": up_s, "attempts": len(pairs), "seconds": took, "rate": len(pairs) / took,
            "outcomes": outcomes, "planted_arrived": arrived}


def measured(capsys: pytest.CaptureFixture[str], record: Callable[[str, object], None], dropped: float) -> Any:
    """all_pairs, with the rate shown and recorded also when the test passes: it is a result, not a diagnosis."""
    found = call("tests.e2e.test_scale", "all_pairs", {"dropped": dropped})
    record("attempts_per_s", round(found["rate"]))
    with capsys.disabled():
        print(f"\n{found['attempts']} attempts among {HOSTS} hosts, {dropped:.0%} dropped: {found['seconds']:.1f} s, "
              f"{found['rate']:.0f} attempts/s; up in {found['up_s']:.1f} s")
    return found


@needs_root
@pytest.mark.e2e
def test_every_pair_opens_with_nothing_enforced(
        capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]) -> None:
    found = measured(capsys, record_property, 0.0)
    assert found["outcomes"]["free"] == {"OPEN": HOSTS * (HOSTS - 1)}


@needs_root
@pytest.mark.e2e
def test_planted_drops_are_told_apart(
        capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]) -> None:
    found = measured(capsys, record_property, DROPPED)
    free, planted = found["outcomes"]["free"], found["outcomes"]["planted"]
    right = free.get("OPEN", 0) + planted.get("TIMED_OUT", 0)
    assert right >= 0.999 * found["attempts"], found
    assert found["planted_arrived"] == 0


def test_the_scenario_is_right() -> None:
    from lab.scenario import loads

    assert len(loads(scenario_text(), "scale.yaml").topology.hosts) == HOSTS
    assert (ROOT / "scenarios").is_dir()
