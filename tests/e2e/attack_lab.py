"""A lab with a way out, planted: a device whose other end is elsewhere. And a blind spot, planted. Runs isolated."""

from __future__ import annotations

import subprocess
from typing import Any

from bench.analysis.visibility import visibility
from bench.attack_labs import standing
from bench.instruments.probe import probe
from lab import confines
from lab.backends.mininet_lab import up
from lab.hosts.build import build
from lab.hosts.roles import actors
from lab.isolation import RunIdentity, tool_env
from lab.policy import flows
from lab.scenario import load
from tests.e2e.isolated import ROOT


def with_a_way_out(me: RunIdentity, _argument: object) -> str:
    scenario = load(ROOT / "scenarios" / "three-tier.yaml")
    with up(scenario.topology, build(), me.cgroup, actors(scenario.topology)) as testbed:
        assert confines.check(testbed) > 0
        with subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; cat"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as elsewhere:
            assert elsewhere.stdout and elsewhere.stdin
            elsewhere.stdout.readline()
            for argv in (["ip", "link", "add", "way", "type", "veth", "peer", "name", "out"],
                         ["ip", "link", "set", "out", "netns", str(elsewhere.pid)],
                         ["ip", "link", "set", "way", "netns", str(testbed.pid("web-1"))]):
                subprocess.run(argv, check=True, env=tool_env())
            testbed.run("web-1", ["ip", "link", "set", "way", "up"])
            try:
                confines.check(testbed)
            except confines.EscapeError as err:
                return str(err)
            finally:
                elsewhere.stdin.close()
    return "nothing was noticed"


def blind(me: RunIdentity, _argument: object) -> dict[str, Any]:
    """What a real arm's telemetry missed of the scenario's flows, and what if one class of it were lost."""
    scenario = load(ROOT / "scenarios" / "blind-spots.yaml")
    every = flows(scenario)
    with standing(scenario, "agent-nft", me, lambda _text: None, lambda _message: None, every) as lab:
        assert lab is not None
        tried = probe(lab.testbed.services, every, scenario.topology)
        seen = [one for point, lines in lab.place.collect().items() for one in lab.enforcer.sightings(point, lines)]
    kept = [one for one in seen if one.proto != "udp"]
    return {"udp": sum(truth.proto == "udp" for truth in tried.truths), "removed": len(seen) - len(kept),
            "whole": visibility(tried.truths, seen, scenario.topology).blind_spots,
            "planted": visibility(tried.truths, kept, scenario.topology).blind_spots}
