"""What the tests of process-level do inside private namespaces, beside a whole run."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from bench.instruments.probe import probe
from lab.isolation import RunIdentity
from lab.model import Point
from lab.policy import flows
from tests.e2e.ebpf_agent import AgentEbpf, Lab, lab

SHORT = 300
ASK = "exec 3<>/dev/tcp/{address}/5432"
# Each under a path of its own, so that the agent has never seen it; what it takes is written in microseconds.
BRIEF = """mkdir -p /opt/brief
cp /usr/bin/bash /opt/brief/0
for i in $(seq {count}); do ln /opt/brief/0 /opt/brief/$i; done
for i in $(seq {count}); do
  before=${{EPOCHREALTIME/./}}; /opt/brief/$i -c '{ask}' 2>/dev/null; echo $((${{EPOCHREALTIME/./}} - before))
done
"""


class Untold(AgentEbpf):
    """The agent, never told of any script."""

    def render(self, native: Any, topology: Any) -> Any:
        plans = super().render(native, topology)
        for plan in plans.values():
            for path in plan.files:
                if path.endswith("policy.json"):
                    policy = json.loads(plan.files[path])
                    plan.files[path] = json.dumps({**policy, "scripts": []}).encode()
        return plans


def without_scripts(me: RunIdentity, _argument: object) -> list[str]:
    """What is not as the policy says where the agent is not told of scripts."""
    with lab(me, "process-level", Untold()) as it:
        return it.wrong(probe(it.testbed.services, flows(it.scenario), it.topology).observations)


def brief(me: RunIdentity, count: int) -> dict[str, Any]:
    """`count` processes, each a program of its own that connects and ends; whom the telemetry names for each."""
    with lab(me, "process-level") as it:
        it.say("mode", "till", "monitor")
        it.say("mode", "ledger", "monitor")
        _collected(it)
        ask = ASK.format(address=it.topology.hosts["ledger"].v4)
        script = BRIEF.format(count=count, ask=ask)
        done = it.testbed.run("till", ["/usr/bin/bash", "-c", script])
        assert done.status == 0, done.stderr.decode()
        named = Counter(record["process"] for record in _collected(it) if record["dport"] == 5432)
        lost = json.loads(it.testbed.run("till", it.arm.ask("till", "collect"), daemon=True).stdout.splitlines()[0])
        return {"took_us": [int(line) for line in done.stdout.split()], "lost": lost["lost"],
                "named": {str(path): times for path, times in named.items()}}


def _collected(it: Lab) -> list[dict[str, Any]]:
    lines = it.place.collect()[Point("host", "till")]
    return [record for line in lines if (record := json.loads(line))["t"] == "flow"]


