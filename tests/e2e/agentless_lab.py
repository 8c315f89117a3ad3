"""What hosts can see of an agentless arm: listed before, during and after, in a whole lab. Runs isolated."""

from __future__ import annotations

from typing import Any

from bench import registry
from lab.backends.mininet_lab import MininetTestbed, up
from lab.hosts.build import build
from lab.hosts.roles import actors
from lab.isolation import RunIdentity
from lab.scenario import load
from tests.e2e.switch_lab import LISTINGS, ROOT

NEIGHBOURS = ("/bin/sh", "-c", "ip neigh show nud permanent | sort")
BRIDGES = ("/bin/sh", "-c", "bridge -d link show | grep -c 'isolated on'; nft list ruleset | wc -l; "
                            "cat /proc/sys/net/bridge/bridge-nf-call-iptables")


def listed(testbed: MininetTestbed) -> dict[str, dict[str, str]]:
    return {host: {what: testbed.run(host, argv).stdout.decode() for what, argv in LISTINGS.items()}
            for host in testbed.topology.hosts}


def known(testbed: MininetTestbed) -> dict[str, str]:
    return {host: testbed.run(host, NEIGHBOURS).stdout.decode() for host in testbed.topology.hosts}


def switch(testbed: MininetTestbed) -> list[str]:
    return testbed.switch.run(BRIDGES, "").stdout.decode().split()


def unseen(me: RunIdentity, name: str) -> dict[str, Any]:
    """What differs on hosts with the arm in place and after it; whom they know for good; what the switch is left as."""
    scenario = load(ROOT / "scenarios" / "same-segment.yaml")
    with up(scenario.topology, build(), me.cgroup, actors(scenario.topology)) as testbed:
        arm = registry.load(name)
        native = arm.compile(scenario.policy, scenario.topology)
        place = testbed.enforcement(name, lambda flow: arm.covers(flow, scenario.topology))
        before, friends, bridges = listed(testbed), known(testbed), switch(testbed)
        place.install(native, arm.render(native, scenario.topology))
        during, fewer, changed = listed(testbed), known(testbed), switch(testbed)
        place.down()
        place.up()
        place.down()
        return {"during": during == before, "after": listed(testbed) == before,
                "asked": sum(fewer[host] != friends[host] for host in friends), "known": known(testbed) == friends,
                "bridges": [bridges, changed, switch(testbed)]}
