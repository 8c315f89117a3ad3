"""A policy of 10,000 entries in one segment, and what each hook of the virtual switch takes of an exchange under it."""

from __future__ import annotations

import os
import time
from typing import Any

from enforcers.agentless.switch.daemon.switchd import PINS, PROGRAMS
from enforcers.agentless.virtual_switch import VirtualSwitch
from lab.backends.mininet_lab import up
from lab.bpf import syscall
from lab.hosts.attempts import Actor
from lab.hosts.build import build
from lab.hosts.roles import actors
from lab.isolation import RunIdentity
from lab.scenario import loads

PORTS = range(20_001, 30_001, 2)  # every other one, so that none are one range: 5,000, in either family
TEXT = f"""version: 1
name: ten-thousand
topology:
  segments: {{floor: {{}}}}
  hosts:
    client: {{segment: floor, labels: {{role: client}}, runs: [asks]}}
    server: {{segment: floor, labels: {{role: server}}, runs: [answers]}}
processes:
  asks: {{exe: /opt/asks}}
  answers: {{exe: /opt/answers, listens: [80/tcp]}}
policy:
  default: deny
  rules:
    - {{name: what is measured, allow: {{from: {{role: client}}, to: {{role: server}}, service: 80/tcp}}}}
    - name: ten thousand entries
      allow: {{from: {{role: client}}, to: {{role: server}}, service: [{", ".join(f"{port}/tcp" for port in PORTS)}]}}
arms: [none, virtual-switch, virtual-switch-nft, virtual-switch-ovs-userspace]
"""


def hooks(me: RunIdentity, seconds: float) -> dict[str, Any]:
    """By loop and hook: runs an exchange, ns a run, ns an exchange. The kernel's own statistics, which cost some."""
    scenario = loads(TEXT, "ten-thousand.yaml")
    found: dict[str, Any] = {}
    with up(scenario.topology, build(), me.cgroup, actors(scenario.topology)) as testbed:
        arm = VirtualSwitch()
        native = arm.compile(scenario.policy, scenario.topology)
        place = testbed.enforcement(arm.name, lambda flow: arm.covers(flow, scenario.topology))
        place.install(native, arm.render(native, scenario.topology))
        asker, server = Actor("client", "asks", "svc"), testbed.topology.hosts["server"]
        programs = {name: syscall.pinned(PINS / name) for name in PROGRAMS}
        found["entries"] = native.count
        for one in (asker, Actor("server", "answers", "svc")):  # both on one processor, as costs are taken
            testbed.services.request(one, "pin", str(max(os.sched_getaffinity(0))))
        for loop in ("crr", "rr"):
            with syscall.run_statistics():
                before = {name: syscall.run_cost(fd) for name, fd in programs.items()}
                begin = time.monotonic()
                done = getattr(testbed.services, loop)(asker, 4, server.v4, 80, seconds)
                elapsed = time.monotonic() - begin
                after = {name: syscall.run_cost(fd) for name, fd in programs.items()}
            found[loop] = {"exchanges": done.n, "errors": done.errors, "us_each": elapsed / max(1, done.n) * 1e6}
            for name in programs:
                runs, spent = (after[name][i] - before[name][i] for i in (0, 1))
                found[loop][name] = {"runs_each": runs / max(1, done.n), "ns_run": spent / max(1, runs),
                                     "ns_each": spent / max(1, done.n)}
        place.down()
    return found
