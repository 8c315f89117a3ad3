"""Many hosts with agent-ebpf: how long until all enforce, beside a deployment that does nothing, and what it takes."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.instruments.probe import probe
from enforcers.agent.agent_ebpf import AgentEbpf
from lab.backends import mininet_lab
from lab.deploy.enforcement import AnsibleEnforcement
from lab.hosts.build import build
from lab.hosts.roles import actors
from lab.isolation import RunIdentity
from lab.model import Deployment, Scenario
from lab.policy import decide, iter_flows
from lab.scenario import loads
from tests.e2e.ebpf_agent import agent_pid

TEXT = """
version: 1
name: big
topology:
  segments: {{lan: {{v4: 10.10.0.0/16, v6: fd10::/64}}}}
  hosts:
    web: {{segment: lan, count: {web}, labels: {{role: web}}, runs: [front]}}
    api: {{segment: lan, count: {api}, labels: {{role: api}}, runs: [api]}}
processes:
  front: {{exe: /opt/shop/front, user: www, listens: [80/tcp]}}
  api: {{exe: /opt/shop/api, user: shop, listens: [8080/tcp]}}
policy:
  default: deny
  rules:
    - name: web calls api
      allow: {{from: {{role: web, process: front}}, to: {{role: api, process: api}}, service: 8080/tcp}}
"""


def scenario_of(hosts: int) -> Scenario:
    return loads(TEXT.format(web=hosts // 2, api=hosts - hosts // 2), "big.yaml")


def idle(deployment: Deployment) -> Deployment:
    """The same points, where two commands do nothing: what ansible itself takes."""
    nothing = ("/bin/true",)
    return {point: replace(plan, files={"/run/host/nothing": b""}, up=(nothing,), ready=nothing, update=(),
                           collect=None, down=(nothing,)) for point, plan in deployment.items()}


def sample(scenario: Scenario, count: int) -> list[Any]:
    """Flows to try, half of them allowed."""
    rng, topology = random.Random(1), scenario.topology
    every = [flow for flow in iter_flows(scenario) if flow.family == 4 and flow.proto == "tcp"]
    allowed = [flow for flow in every if decide(scenario.policy, flow, topology).allow]
    return rng.sample(every, count // 2) + rng.sample(allowed, count // 2)


def memory_of(pid: int) -> dict[str, float]:
    """Megabytes of a process: proportional, private, resident."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {line.split()[0].rstrip(":"): int(line.split()[1]) / 1024 for line in text.splitlines()[1:]}
    return {"pss": found["Pss"], "private": found["Private_Clean"] + found["Private_Dirty"], "rss": found["Rss"]}


def deployed(me: RunIdentity, hosts: int) -> dict[str, Any]:
    """Seconds to deploy to `hosts` hosts through ansible, and what the one agent then holds."""
    scenario = scenario_of(hosts)
    topology, arm = scenario.topology, AgentEbpf()
    begun = time.monotonic()
    native = arm.compile(scenario.policy, topology)
    deployment = arm.render(native, topology)
    found: dict[str, Any] = {"compile_s": time.monotonic() - begun}
    flows = sample(scenario, 400)
    with mininet_lab.up(topology, build(), me.cgroup, actors(topology)) as testbed:
        nothing = AnsibleEnforcement(testbed, "nothing")
        found["nothing_s"] = nothing.install(native, idle(deployment)).seconds
        found["nothing_up_s"] = nothing.up()
        place = AnsibleEnforcement(testbed, arm.name)
        try:
            installed = place.install(native, deployment)
            found["agent_s"], found["bytes_per_host"] = installed.seconds, installed.bytes_per_host
            seen = probe(testbed.services, flows, topology).observations
            found["wrong"] = [f"{one.flow}: {one.outcome}" for one in seen
                              if decide(native.effective, one.flow, topology).allow != (one.outcome == "OPEN")]
            found["open"] = sum(one.outcome == "OPEN" for one in seen)
            found["memory"] = memory_of(agent_pid(me))
            begun = time.monotonic()
            place.down()
            found["down_s"] = time.monotonic() - begun
            found["agent_up_s"] = place.up()
            found["daemon_cpu_s"] = sum(testbed.usage().daemon_cpu_s.values())
            begun = time.monotonic()
            found["lines"] = sum(map(len, place.collect().values()))
            found["collect_s"] = time.monotonic() - begun
        finally:
            place.down()
    return found
