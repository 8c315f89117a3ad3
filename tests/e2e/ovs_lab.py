"""Open vSwitch at the switch of a whole lab: what hosts and the switch see of it; one daemon killed. Runs isolated."""

from __future__ import annotations

import json
import os
import select
import signal
from pathlib import Path
from typing import Any

from enforcers.agentless.virtual_switch_ovs import DIRECTORY, VirtualSwitchOvsUserspace
from lab.backends.mininet_lab import up
from lab.hosts.attempts import Actor
from lab.hosts.build import build
from lab.hosts.roles import actors
from lab.isolation import RunIdentity
from lab.model import FAMILIES, Family
from lab.scenario import load, loads
from tests.e2e.agentless_lab import listed
from tests.e2e.switch_lab import ROOT

_LINKS = ("ip", "-json", "-details", "link", "show")
_KEPT = ("ifname", "master", "mtu", "promiscuity", "flags")
_DAEMONS = ("ovsdb-server", "ovs-vswitchd")


def lived(me: RunIdentity, _argument: object) -> dict[str, Any]:
    """Put in place, used, its switch daemon killed, put in place again, taken away; twice."""
    scenario = load(ROOT / "scenarios" / "same-segment.yaml")
    topology = scenario.topology
    with up(topology, build(), me.cgroup, actors(topology)) as testbed:
        def links() -> list[dict[str, Any]]:
            shown = json.loads(testbed.switch.run(_LINKS, "").stdout)
            return [{key: one.get(key) for key in _KEPT} for one in shown]

        def asked() -> bool:
            done = testbed.services.crr(Actor("admin", "console", "svc"), 4, topology.hosts["web"].v4, 80, 0.3)
            return done.n > 0 and not done.errors

        def running() -> list[int]:
            return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()
                    and (entry / "comm").read_text().strip() in _DAEMONS and (entry / "cmdline").read_bytes()]

        arm = VirtualSwitchOvsUserspace()
        native = arm.compile(scenario.policy, topology)
        place = testbed.enforcement(arm.name, lambda flow: arm.covers(flow, topology))
        hosts, before = listed(testbed), links()
        place.install(native, arm.render(native, topology))
        found: dict[str, Any] = {"unseen": listed(testbed) == hosts, "asked": asked(), "daemons": len(running())}
        daemon = os.pidfd_open(int(Path(DIRECTORY, "run/ovs-vswitchd.pid").read_text()))
        signal.pidfd_send_signal(daemon, signal.SIGKILL)
        select.select([daemon], [], [])  # it has much memory to give back, and answers for it until that is done
        os.close(daemon)
        found["ready without"] = any(testbed.run_at(point, plan.ready).status == 0
                                     for point, plan in arm.render(native, topology).items())
        found["asked without"] = asked()
        place.up()
        found["asked again"] = asked()
        place.down()
        place.up()
        place.down()
        files = sorted(path.name for path in Path(DIRECTORY).iterdir() if path.suffix not in (".py", ".flows"))
        return {**found, "back": links() == before, "hosts": listed(testbed) == hosts, "left": running(),
                "files": files}


def fragments(me: RunIdentity, _argument: object) -> dict[str, str]:
    """What ping says between two hosts and across segments, of datagrams that fit a frame and that take three."""
    scenario = loads(_PINGS, "pings.yaml")
    topology, arm = scenario.topology, VirtualSwitchOvsUserspace()
    with up(topology, build(), me.cgroup, actors(topology)) as testbed:
        native = arm.compile(scenario.policy, topology)
        place = testbed.enforcement(arm.name, lambda flow: arm.covers(flow, topology))
        place.install(native, arm.render(native, topology))

        def pinged(source: str, target: str, family: Family, size: int) -> str:
            argv = ["ping", "-c", "2", "-i", "0.1", "-W", "1", "-s", str(size), topology.hosts[target].address(family)]
            return testbed.run(source, argv).stdout.decode().partition(" received")[0].rpartition(" ")[2]

        return {f"{source} > {target} v{family} {size}": pinged(source, target, family, size)
                for source, target in (("client", "server"), ("client", "far"), ("server", "client"))
                for family in FAMILIES for size in (56, 4000)}


_PINGS = """version: 1
name: pings
topology:
  segments: {floor: {}, hall: {}}
  hosts:
    client: {segment: floor, labels: {role: client}}
    server: {segment: floor, labels: {role: server}}
    far: {segment: hall, labels: {role: server}}
policy:
  default: deny
  rules: [{name: pings, allow: {from: {role: client}, to: {role: server}, service: icmp}}]
arms: [none]
"""
