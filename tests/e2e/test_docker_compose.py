"""A compose file of a usual shape, imported and run with real programs: nginx, busybox, redis, memcached."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench.report.summary import Summary, from_json
from tests.e2e import docker_images
from tests.e2e.isolated import ROOT, needs_isolation, needs_root
from tests.e2e.test_docker import everything, labctl

pytestmark = [needs_root, needs_isolation, pytest.mark.e2e]
REAL = {("web", 80), ("api-1", 8000), ("api-2", 8000), ("database", 6379), ("cache", 11211)}


@pytest.fixture(scope="module")
def shop(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The imported scenario; its images are in the engine."""
    import docker

    directory = tmp_path_factory.mktemp("shop")
    client = docker.DockerClient(base_url=f"unix://{engine}")
    docker_images.make(client, tmp_path_factory.mktemp("packages"))
    client.close()
    file = ROOT / "tests/data/compose/compose.yaml"
    done = labctl("import", "compose", str(file), "-o", str(directory / "shop.yaml"))
    assert done.returncode == 0, done.stderr
    for text in ("web: its volumes", "web: it is in back too", "api: the variable API_SECRET",
                 "database: its mem_limit"):
        assert f"not carried over: {text}" in done.stderr
    return directory / "shop.yaml"


@pytest.fixture(scope="module")
def ran(engine: str, shop: Path) -> tuple[Summary, list[dict[str, Any]]]:
    before = everything(engine)
    done = labctl("run", str(shop), "--blocks", "0", "--json", "--results", str(shop.parent / "results"))
    assert done.returncode == 0, done.stderr
    assert everything(engine) == before
    (saved,) = (shop.parent / "results" / "shop").iterdir()
    with gzip.open(saved / "observations.jsonl.gz", "rt") as lines:
        return from_json(done.stdout), [json.loads(line) for line in lines]


def to_real(observations: list[dict[str, Any]], arm: str) -> list[dict[str, Any]]:
    return [o for o in observations if o["arm"] == arm and o["phase"] == "matrix" and o["flow"]["proto"] == "tcp"
            and (o["flow"]["target"], o["flow"]["port"]) in REAL]


def test_every_real_program_serves_both_families_and_its_arrivals_are_captured(ran) -> None:  # type: ignore[no-untyped-def]
    seen = to_real(ran[1], "none")
    assert {(o["flow"]["target"], o["flow"]["port"], o["flow"]["family"]) for o in seen} == \
        {(*one, family) for one in REAL for family in (4, 6)}
    assert Counter((o["outcome"], o["arrived"]) for o in seen) == {("OPEN", True): len(seen)}


def test_what_an_agent_beside_the_program_denies_does_not_arrive(ran) -> None:  # type: ignore[no-untyped-def]
    seen = to_real(ran[1], "agent-nft")
    opened = [o for o in seen if o["outcome"] == "OPEN"]
    assert opened and all(o["arrived"] for o in opened)
    assert len(seen) > len(opened) and not any(o["arrived"] for o in seen if o["outcome"] != "OPEN")


def test_no_arm_does_otherwise_than_it_says(ran) -> None:  # type: ignore[no-untyped-def]
    summary = ran[0]
    assert set(summary.arms) == {"none", "agent-nft", "chokepoint"}
    for found in summary.arms.values():
        assert (found.unsupported, found.defects, found.breaks, found.inconclusive) == (None, 0, 0, 0), found.findings
    agent = summary.arms["agent-nft"]
    assert agent.leaks == agent.gaps  # what the visitor, who takes no agent, says to itself
    assert [gap.reason for gap in agent.gap_classes] == ["no agent on either end (client)"]
    assert summary.arms["chokepoint"].leaks == summary.arms["chokepoint"].gaps > 0
    assert summary.arms["agent-nft"].visibility["user"].recall > 0.8


def test_an_image_that_is_not_there_or_does_not_hold_the_program_is_one_line(shop: Path, tmp_path: Path) -> None:
    for old, new, said in (
            ("image: labctl-test/redis", "image: no/such", "the engine has no image no/such; docker pull no/such"),
            ("/usr/bin/memcached, -l", "/usr/bin/nothing, -l", "cache: /usr/bin/nothing: No such file"),
            ("command: [redis-server, --port, '6379'", "command: [redis-server, --port, 'x'", "ended with status 1"),
            ("exe: /usr/bin/memcached", "exe: /usr/bin/other", "runs as /usr/bin/memcached, and the scenario says")):
        text = shop.read_text()
        assert old in text
        file = tmp_path / "shop.yaml"
        file.write_text(text.replace(old, new))
        done = labctl("run", str(file), "--blocks", "0", "--arms", "none", "--results", str(tmp_path / "results"))
        assert done.returncode == 3, done.stderr
        assert said in done.stderr.strip().splitlines()[-1], done.stderr
