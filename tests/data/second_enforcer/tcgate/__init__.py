"""tcgate for labctl: each host drops what opens a denied flow, by a stateless classic-BPF program on eth0's tc ingress."""

import json
from pathlib import Path

from enforcers.base import Resolver, effective
from lab.model import FAMILIES, Feature, Native, Point, PointPlan, Sighting
from tcgate.program import denied, program

CODE, TABLE, WATCH = "/run/host/tcgate.bpf", "/run/host/tcgate.json", "/run/host/tcgate-watch.py"
OUT, PID = "/run/host/tcgate.jsonl", "/run/host/tcgate.pid"
RECORDER = Path(__file__).with_name("watch.py").read_bytes()

# No connection tracking: a datagram to one of these ports may be the answer to this host's own, so it is let through.
EPHEMERAL = (32768, 60999)

QDISC = "tc qdisc show dev eth0 | grep -q clsact || tc qdisc add dev eth0 clsact"
LOAD = ("tc", "filter", "replace", "dev", "eth0", "ingress", "prio", "1", "handle", "1", "protocol", "all",
        "bpf", "direct-action", "bytecode-file", CODE)
READY = f"tc filter show dev eth0 ingress | grep -q direct-action && test -e {PID}"
COLLECT = f"test ! -e {OUT} || {{ mv {OUT} {OUT}.read && cat {OUT}.read; }}"
DOWN = (f"test ! -e {PID} || kill $(cat {PID}); rm -f {PID} {OUT} {OUT}.read; "
        "! tc qdisc show dev eth0 | grep -q clsact || tc qdisc del dev eth0 clsact")


class TcGate:
    """Stateless tc filter at each receiving host: denies by address, protocol and port; sees what opens flows."""

    name = "tcgate"

    def needs(self):
        return (Feature("tc-bpf", "what opens a denied flow is dropped by a program on each host's tc ingress"),
                Feature("python3", "the recorder is a Python program"))

    def compile(self, policy, topology):
        reduced, notes = effective(policy)
        resolver, texts, count = Resolver(reduced, topology), {}, 0
        for host in topology.hosts.values():
            if not host.takes_agent:
                continue
            table = {4: {}, 6: {}}
            for family in FAMILIES:
                for peer in topology.hosts.values():
                    if peer is host:
                        continue
                    entry = denied(resolver.services(peer, host, family), EPHEMERAL)
                    # Without state an answer in another protocol looks like a question: drop only if neither may ask.
                    entry["other"] = entry["other"] and not resolver.services(host, peer, family).other
                    table[family][peer.address(family)] = entry
                    count += len(entry["tcp"]) + len(entry["udp"]) + entry["icmp"] + entry["other"]
            texts[Point("host", host.name)] = json.dumps(table)
        return Native(rules=texts, effective=reduced, approximations=tuple(notes), count=count)

    def render(self, native, topology):
        return {point: self._plan(text) for point, text in native.rules.items()}

    def _plan(self, text):
        table = json.loads(text)
        return PointPlan(
            files={CODE: program(table["4"], table["6"]).encode(), TABLE: text.encode(), WATCH: RECORDER},
            up=(("/bin/sh", "-c", QDISC), LOAD, ("setsid", "-f", "/usr/bin/python3", "-I", WATCH)),
            ready=("/bin/sh", "-c", READY),
            update=(LOAD, ("/bin/sh", "-c", f"kill -HUP $(cat {PID})")),
            collect=("/bin/sh", "-c", COLLECT),
            down=(("/bin/sh", "-c", DOWN),))

    def covers(self, flow, topology):
        if flow.source == flow.target or not topology.hosts[flow.target].takes_agent:
            return False  # loopback never meets eth0; nothing is placed on a host that takes no agent
        return not (flow.proto == "udp" and EPHEMERAL[0] <= flow.port <= EPHEMERAL[1])

    def sightings(self, point, lines):
        return [Sighting(point=point.host, **json.loads(line)) for line in lines]
