"""What the tests of agent-ebpf do inside private namespaces: stand three-tier up with it, and try it."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.analysis.visibility import FIELDS, match
from bench.instruments.probe import probe
from bench.testbeds import with_contents
from enforcers.agent.agent_ebpf import AgentEbpf
from enforcers.agent.ebpf.bundle import AGENT_DIR
from lab.backends import mininet_lab
from lab.backends.mininet_lab import MininetTestbed
from lab.deploy.enforcement import AnsibleEnforcement
from lab.hosts.build import build
from lab.hosts.roles import actors
from lab.isolation import RunIdentity
from lab.model import Observation, Point, Policy, Scenario, Sighting
from lab.policy import decide, flows
from lab.scenario import load

ROOT = Path(__file__).parents[2]


class Lab:
    """three-tier, standing, with agent-ebpf in force; what it says is judged here."""

    def __init__(self, scenario: Scenario, testbed: MininetTestbed, me: RunIdentity, arm: AgentEbpf) -> None:
        self.scenario, self.topology, self.testbed, self.arm = scenario, scenario.topology, testbed, arm
        self.me, self.place = me, AnsibleEnforcement(testbed, arm.name)
        self.native = arm.compile(scenario.policy, self.topology)
        self.place.install(self.native, arm.render(self.native, self.topology))

    def say(self, verb: str, host: str, *words: str) -> str:
        """What the agent answers on `host`; AssertionError with its complaint where it refuses."""
        done = self.testbed.run(host, self.arm.ask(host, verb, *words), daemon=True)
        assert done.status == 0, f"{verb} on {host}: {done.stderr.decode()}"
        return done.stdout.decode()

    def status(self, host: str) -> dict[str, Any]:
        return dict(json.loads(self.say("status", host)))

    def place_policy(self, host: str, policy: Policy) -> None:
        """Put other tables on `host`, not yet in force."""
        native = self.arm.compile(policy, self.topology)
        plan = self.arm.render(native, self.topology)[Point("host", host)]
        self.testbed.put(host, {path: data for path, data in plan.files.items() if not path.endswith((".pyz", ".o"))})

    def wrong(self, seen: tuple[Observation, ...], policy: Policy | None = None) -> list[str]:
        """Observations that are not as the policy says, where the arm claims coverage; all passes elsewhere."""
        policy = policy or self.native.effective
        found = []
        for one in seen:
            allow = not self.arm.covers(one.flow, self.topology) or decide(policy, one.flow, self.topology).allow
            if (one.outcome == "OPEN") is not allow or (not allow and one.arrived):
                found.append(f"{one.flow}: {one.outcome}, arrived {one.arrived}")
        return found

    def pid(self) -> int:
        """The agent's process."""
        return agent_pid(self.me)


def agent_pid(me: RunIdentity) -> int:
    """The one agent of a run, as the run counts processes."""
    for cgroup in sorted(me.cgroup.iterdir()) if me.cgroup else ():
        if cgroup.name.endswith(".d"):
            for pid in (cgroup / "cgroup.procs").read_text().split():
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if f"{AGENT_DIR}/agent.pyz" in words and "start" in words:  # and none of the commands that ask it
                    return int(pid)
    raise AssertionError("no agent runs")


@contextmanager
def lab(me: RunIdentity, name: str = "three-tier", arm: AgentEbpf | None = None) -> Iterator[Lab]:
    scenario = with_contents(load(str(ROOT / f"scenarios/{name}.yaml")), build())
    with mininet_lab.up(scenario.topology, build(), me.cgroup, actors(scenario.topology, flows(scenario))) as testbed:
        standing = Lab(scenario, testbed, me, arm or AgentEbpf())
        try:
            yield standing
        finally:
            standing.place.down()


def whole_matrix(me: RunIdentity, name: str) -> dict[str, Any]:
    """Every flow of a scenario, and what the telemetry told of those with an agent at their source."""
    with lab(me, name) as it:
        got = probe(it.testbed.services, flows(it.scenario), it.topology)
        sightings: list[Sighting] = []
        headers = []
        for point, lines in it.place.collect().items():
            headers.append(json.loads(lines[0]))
            sightings += it.arm.sightings(point, lines)
        # Refused before it had a port (or an echo its identifier), one attempt cannot be told from its neighbours.
        managed = [t for t in got.truths if it.topology.hosts[t.source].takes_agent and t.sport]
        matches, _ = match(managed, sightings)
        missed = {field: [str(m.truth) for m in matches if m.right[field] is False] for field in FIELDS}
        return {"flows": len(got.observations), "wrong": it.wrong(got.observations), "truths": len(managed),
                "missed": {field: (len(found), found[:3]) for field, found in missed.items()},
                "lost": [header["lost"] for header in headers],
                "left": sorted(os.listdir("/run/labctl/bpf/agent-ebpf"))[:1]}


def left_behind(me: RunIdentity, _argument: object) -> dict[str, Any]:
    """What is there after `down`, and that a second `up` and `down` work."""
    with lab(me) as it:
        it.place.down()
        first = os.listdir("/run/labctl/bpf/agent-ebpf") if Path("/run/labctl/bpf/agent-ebpf").exists() else []
        it.place.up()
        it.say("start", "web-1")  # once more, over what is in force
        some = flows(it.scenario)[::11]
        return {"left": first, "wrong": it.wrong(probe(it.testbed.services, some, it.topology).observations)}


def killed(me: RunIdentity, rounds: int) -> dict[str, Any]:
    """The agent killed `rounds` times under load with a change of policy pending at the host that is asked.

    The change takes api's reading of the store away. Old and new policy are both right while it is pending.
    """
    rng = random.Random(rounds)
    with lab(me) as it:
        old = it.scenario.policy
        new = replace(old, rules=tuple(rule for rule in old.rules if rule.name != "api reads store"))
        denied = [f for f in flows(it.scenario) if not decide(old, f, it.topology).allow
                  and it.arm.covers(f, it.topology) and f.target == "db"][::7]
        kept = [f for f in flows(it.scenario) if decide(new, f, it.topology).allow]
        leaks, breaks, told, asked = [], [], 0, 0
        for _ in range(rounds):
            it.place_policy("db", new)
            after = threading.Timer(rng.uniform(0.0, 0.15), _kill, (it.pid(),))
            change = threading.Thread(target=_attempt, args=(lambda: it.say("update", "db"),))
            after.start()
            change.start()
            for _ in range(3):
                seen = probe(it.testbed.services, [*kept, *denied], it.topology, timeout_s=0.8).observations
                asked += len(seen)
                leaks += [str(o.flow) for o in seen[len(kept):] if o.outcome == "OPEN" or o.arrived]
                breaks += [f"{o.flow}: {o.outcome}" for o in seen[:len(kept)] if o.outcome != "OPEN"]
            change.join()
            after.join()
            it.place_policy("db", old)
            it.say("start", "db")
            for host in it.native.rules:
                it.say("ready", host.host)  # also lets the new agent meet the host
            told += sum(len(lines) - 1 for lines in it.place.collect().values())
        counted = sum(it.status(point.host)["counters"]["denied"] for point in it.native.rules)
        return {"leaks": leaks, "breaks": breaks, "asked": asked, "told": told, "denied_in_kernel": counted,
                "took_over": it.status("db")["agent"]["took_over"]}


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _attempt(act: Callable[[], object]) -> None:
    try:
        act()
    except AssertionError:
        return  # the agent died over it: what the next one finds is what counts


def changed(me: RunIdentity, _argument: object) -> dict[str, Any]:
    """Modes, and a change of policy with connections established: what became of them, and how long it took."""
    with lab(me) as it:
        policy = it.scenario.policy
        flow = next(f for f in flows(it.scenario) if (f.source, f.process, f.target, f.port, f.family, f.proto) == (
            "api-1", "api", "db", 6379, 4, "tcp") and f.user == "shop")
        stranger = replace(flow, process="backup", user="backup")
        found: dict[str, Any] = {}

        def outcomes() -> list[str]:
            return [str(o.outcome) for o in probe(it.testbed.services, [flow, stranger], it.topology).observations]

        found["enforce"] = outcomes()
        it.say("mode", "api-1", "monitor")
        it.say("mode", "db", "monitor")
        found["monitor"] = outcomes()
        found["would_deny"] = it.status("api-1")["counters"]["would_denied"]
        it.say("mode", "api-1", "monitor", "6379/tcp")
        it.say("mode", "db", "monitor", "6379/tcp")
        found["selected"], found["said"] = outcomes(), it.status("db")["enforced"]
        it.say("mode", "api-1", "monitor", "6380/tcp")
        it.say("mode", "db", "monitor", "6380/tcp")
        found["another"] = outcomes()
        it.say("mode", "api-1", "off")
        it.say("mode", "db", "off")
        found["off"] = outcomes()
        it.say("mode", "api-1", "enforce")
        it.say("mode", "db", "enforce")
        found["again"] = outcomes()
        without = replace(policy, rules=tuple(r for r in policy.rules if r.name != "api reads store"))
        it.place_policy("db", without)
        begun = time.monotonic()
        it.say("update", "db")
        found["seconds"] = time.monotonic() - begun
        found["update_ms"] = it.status("db")["update_ms"]
        found["taken"] = outcomes()
        return found


def large(me: RunIdentity, argument: list[float]) -> dict[str, Any]:
    """A policy of so many entries for one host: what replacing it takes, and that the next connection sees it.

    `argument`: entries, and seconds from one change to the next: the agent makes ready for the next after about two.
    """
    entries, wait_s = int(argument[0]), argument[1]
    with lab(me) as it:
        policy = it.scenario.policy
        base = next(rule for rule in policy.rules if rule.name == "api reads store")
        many = [replace(base, name=f"r{i}", services=(replace(base.services[0], low=10000 + i, high=10000 + i),))
                for i in range(entries // 3)]
        big = replace(policy, rules=(*policy.rules, *many))
        less = replace(policy, rules=(*(r for r in policy.rules if r is not base), *many))
        flow = next(f for f in flows(it.scenario) if (f.source, f.process, f.target, f.port, f.family, f.proto) == (
            "api-1", "api", "db", 6379, 4, "tcp") and f.user == "shop")
        found: dict[str, Any] = {"ms": [], "revoke_ms": [], "command_ms": [], "outcomes": []}
        for policy_now in (big, less, big, less, big):
            it.place_policy("db", policy_now)
            time.sleep(wait_s)
            begun = time.monotonic()
            it.say("update", "db")
            found["command_ms"].append(round((time.monotonic() - begun) * 1000, 1))
            status = it.status("db")
            found["ms"].append(status["update_ms"])
            found["revoke_ms"].append(status["revoke_ms"])
            found["entries"] = status["entries"]
            found["outcomes"].append(str(probe(it.testbed.services, [flow], it.topology).observations[0].outcome))
        return found


