"""How fast telemetry is matched with what was really done: 100,000 attempts, each seen at both ends. `make bench`."""

from __future__ import annotations

from dataclasses import replace

from bench.analysis.visibility import visibility
from lab.model import Sighting, Truth
from tests.unit.test_matrices import TOPOLOGY

_MANY = 100_000
_TRUTH = Truth("probe", "web", "frontend", "/opt/frontend", "www", "api", "tcp", "10.0.0.1", 1, "10.0.0.3", 8080, 100.0,
               100.1, 64, "OPEN", True)
_SEEN = Sighting("web", 100.05, "tcp", "10.0.0.1", 1, "10.0.0.3", 8080, "/opt/frontend", "www", None, 480, 8, "allow")


def test_both_ends_saw_everything(benchmark) -> None:  # type: ignore[no-untyped-def]
    truths = [replace(_TRUTH, sport=i % 60_000 + 1, dport=8080 + i // 60_000) for i in range(_MANY)]
    sightings = [replace(_SEEN, point=point, sport=t.sport, dport=t.dport) for t in truths for point in ("web", "api")]
    got = benchmark.pedantic(visibility, (truths, sightings, TOPOLOGY), rounds=3)
    assert got.fields["process"].recall == 1 and got.unexplained == 0
