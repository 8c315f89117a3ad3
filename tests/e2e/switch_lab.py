"""The virtual switch in a whole lab: what hosts can see of it, how a large change arrives. Runs isolated."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from enforcers.agentless.switch.daemon.switchd import PINS
from enforcers.agentless.virtual_switch import VirtualSwitch
from lab import faults
from lab.backends.mininet_lab import MininetTestbed, up
from lab.hosts.attempts import Actor, Attempt
from lab.hosts.build import build
from lab.hosts.roles import actors
from lab.isolation import RunIdentity
from lab.model import Native, Point, PointPlan, Scenario
from lab.scenario import load

ROOT = Path(__file__).parents[2]
# One process that leaves itself out: those of a shell's pipe would come and go while it looks.
PROCESSES = ("import os; print(*sorted(os.readlink(f'/proc/{p}/exe') for p in os.listdir('/proc') "
             "if p.isdigit() and int(p) != os.getpid()), sep='\\n')")
LISTINGS = {
    "processes": ("/usr/bin/python3", "-IS", "-c", PROCESSES),
    "files": ("/bin/sh", "-c", "find /run /opt /srv | sort"),
    "rules": ("nft", "list", "ruleset"),
    "queues and programs": ("/bin/sh", "-c", "tc qdisc show; tc filter show dev eth0; tc filter show dev eth0 egress; "
                                             "tc filter show dev eth0 ingress; ip -d link show eth0"),
}


def listed(testbed: MininetTestbed) -> dict[str, dict[str, str]]:
    found = {host: {what: testbed.run(host, argv).stdout.decode() for what, argv in LISTINGS.items()}
             for host in (*testbed.topology.hosts, testbed.topology.router)}
    assert all("/stranger" in one["processes"] for host, one in found.items() if host != testbed.topology.router), found
    assert all("/run/host" in one["files"] and "eth0" in one["queues and programs"] for one in found.values()), found
    return found


def unseen(me: RunIdentity, _argument: object) -> dict[str, Any]:
    """What differs inside the hosts with the arm in place, after it, and what is left at the switch."""
    scenario = load(ROOT / "scenarios" / "three-tier.yaml")
    with up(scenario.topology, build(), me.cgroup, actors(scenario.topology)) as testbed:
        before = listed(testbed)
        arm, native = VirtualSwitch(), VirtualSwitch().compile(scenario.policy, scenario.topology)
        place = testbed.enforcement(arm.name, lambda flow: arm.covers(flow, scenario.topology))
        place.install(native, arm.render(native, scenario.topology))
        during = listed(testbed)
        update = changed(testbed, scenario, native)
        usage = testbed.usage()
        place.down()
        return {"during": differing(before, during), "after": differing(before, listed(testbed)),
                "left": PINS.exists() and any(PINS.iterdir()),
                "switch_cpu_s": usage.daemon_cpu_s.get("(switch)"), **update}


def restarted(me: RunIdentity, argument: dict[str, Any]) -> dict[str, Any]:
    """The daemon killed and started again, `rounds` times, under connections that go on and that begin.

    `letting_go`: the planted fault, a start that takes a port's programs away before it puts them there again.
    """
    scenario = load(ROOT / "scenarios" / "three-tier.yaml")
    topology = scenario.topology
    with up(topology, build(), me.cgroup, actors(topology)) as testbed, ThreadPoolExecutor() as pool:
        arm = VirtualSwitch()
        native = arm.compile(scenario.policy, topology)
        deployment = arm.render(native, topology)
        if argument["letting_go"]:
            deployment = {point: _letting_go(plan) for point, plan in deployment.items()}
        place = testbed.enforcement(arm.name, lambda flow: arm.covers(flow, topology))
        place.install(native, deployment)
        seconds = 2 * place.up() + 1  # as long as this machine takes today
        place.collect()
        web, db = topology.hosts["web-1"].v4, topology.hosts["db"].v4
        found: Counter[str] = Counter(lost=-lost_openings(testbed, "user-1"))
        for _ in range(argument["rounds"]):
            begun = [pool.submit(testbed.services.crr, Actor("user-1", "browser", "svc"), 4, web, 80, seconds, 300),
                     pool.submit(testbed.services.rr, Actor("user-2", "browser", "svc"), 4, web, 80, seconds),
                     pool.submit(testbed.services.crr, Actor("web-1", "frontend", "www"), 4, db, 6379, seconds)]
            faults.kill(faults.daemons(testbed, [next(iter(deployment))]))
            place.up()
            opened, stood, denied = (one.result() for one in begun)
            found.update(opened=opened.n, failed=opened.errors, stood=stood.n, cut=stood.errors, leaked=denied.n)
        found["lost"] += lost_openings(testbed, "user-1")
        lines = place.collect()[Point("port", "user-1")]
        told = [one for one in arm.sightings(Point("port", "user-1"), lines)
                if (one.target, one.dport, one.verdict) == (web, 80, "allow")]
        place.down()
        return {**found, "told": len(told), "rules": sorted({str(one.rule) for one in told}),
                "left": [path.name for path in Path("/run/switch").iterdir() if path.is_file()]}


def lost_openings(testbed: MininetTestbed, host: str) -> int:
    """How many SYNs the kernel of a host sent once more (proc(5), net/netstat), since nobody answered the first."""
    lines = testbed.run(host, ["cat", "/proc/net/netstat"]).stdout.decode().splitlines()
    names, values = (next(line.split() for line in lines[at::2] if line.startswith("TcpExt:")) for at in (0, 1))
    return int(dict(zip(names, values, strict=True))["TCPSynRetrans"])


def _letting_go(plan: PointPlan) -> PointPlan:
    files, head = dict(plan.files), "def _stands(pin: Path, index: int, program: int) -> bool:\n"
    path = next(path for path in files if path.endswith("switch.pyz"))
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(files[path])) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            source = old.read(name).decode()
            if name.endswith("switchd.py"):
                assert head in source
                source = source.replace(head, f"{head}    pin.unlink(missing_ok=True)\n    time.sleep(0.05)\n"
                                              "    return False\n")
            new.writestr(name, source)
    return replace(plan, files={**files, path: made.getvalue()})


def differing(one: dict[str, dict[str, str]], other: dict[str, dict[str, str]]) -> list[str]:
    """Every line that only one of two listings has, with its host."""
    return [f"{host}: {what}: {line}" for host in one for what in LISTINGS
            for line in set(one[host][what].splitlines()) ^ set(other[host][what].splitlines())]


def changed(testbed: MininetTestbed, scenario: Scenario, native: Native, entries: int = 10_000) -> dict[str, Any]:
    """A policy of 10,000 entries, put in force five times: the seconds that each took, and what the next packet met."""
    first = next(iter(native.rules))
    document = json.loads(native.rules[first])
    policy = document["policy"]
    groups = range(1000, 1000 + entries)
    policy["addresses"] += [[f"172.16.{n // 256}.{n % 256}", group] for n, group in enumerate(groups)]
    policy["verdicts"] += [[group, 1, 3, 1, 1] for group in groups]
    shut = replace_rules(document, allow_shop=False)
    seconds, met = [], []
    hosts = scenario.topology.hosts
    attempt = Attempt(Actor("user-1", "browser", "svc"), "tcp", 4, hosts["web-1"].v4, 80)
    for _ in range(5):
        for one in (shut, document):
            seconds.append(put(testbed, first, one))
            (got,) = testbed.services.probe([attempt], 0.3)
            met.append(got.outcome)
    return {"seconds": seconds, "met": met, "entries": len(policy["verdicts"])}


def replace_rules(document: dict[str, Any], *, allow_shop: bool) -> dict[str, Any]:
    policy = document["policy"]
    verdicts = [[*entry[:4], int(allow_shop) if entry[3] == 1 else entry[4]] for entry in policy["verdicts"]]
    return {**document, "policy": {**policy, "verdicts": verdicts}}


def put(testbed: MininetTestbed, point: Point, document: dict[str, Any]) -> float:
    plan = VirtualSwitch().render(Native({point: json.dumps(document)}, None, (), 0), testbed.topology)[point]  # type: ignore[arg-type]
    file = next(path for path in plan.files if path.endswith("port.json"))
    testbed.put_at(point, {file: plan.files[file]})
    begin = time.monotonic()
    done = testbed.run_at(point, plan.update[0])
    assert done.status == 0, done.stderr
    assert time.monotonic() - begin < 60
    return float(json.loads(done.stdout)["seconds"])
