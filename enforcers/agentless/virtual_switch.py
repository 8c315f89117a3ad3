"""The virtual switch: a distributed firewall at the switch port of every host, out of the host's sight and reach.

As the vNIC firewalls of hypervisors. It sees addresses and ports of all that leaves or enters a host, within a segment
too, whether the host takes an agent or not; what stays inside one host never comes by.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from enforcers.agentless.ports import comes_by, guarded
from enforcers.agentless.switch.bundle import port_plan
from enforcers.agentless.switch.tables import Tables
from enforcers.base import effective
from lab.model import Deployment, Feature, Flow, Host, Native, Point, Policy, Sighting, Topology

FIRST_TENANT = 1  # 0 is nobody's
# Seconds. First, opening, established, closing, closed, UDP and ICMP: the session timers that NSX sets by default.
TIMEOUTS_S = {"first": 120, "opening": 30, "established": 43200, "closing": 120, "closed": 20, "udp_single": 30,
              "udp_multiple": 60, "icmp": 20, "other": 60}
OPTIONS: dict[str, Any] = {"pick_up": False, "reset_refused": False, "reset_cut": True, "timeouts_s": TIMEOUTS_S}


class VirtualSwitch:
    """Stateful firewall at every switch port (tc-bpf), anti-spoofing, flow records with the rule's name."""

    name = "virtual-switch"
    knows_tenants = True  # a port has a tenant, and a tenant a policy of its own
    stops_spoofing = True  # checked at the port: MAC, ARP, neighbour discovery, source address

    def needs(self) -> tuple[Feature, ...]:
        return (
            Feature("tc-bpf", "the firewall is a program at each switch port"),
            Feature("clang", "the program is compiled here"),
            Feature("libbpf", "its daemon loads the program"),
            Feature("python3", "its daemon at the switch is a Python 3.11 program without dependencies"),
        )

    def compile(self, policy: Policy, topology: Topology) -> Native:
        """One policy for each tenant, told with its first port; what each host may call itself, with its own."""
        reduced, approximations = effective(policy)
        rules: dict[Point, str] = {}
        count = 0
        told: set[int] = set()
        numbers = {name: FIRST_TENANT + at for at, name in enumerate(topology.tenants or ("",))}
        for host in guarded(topology):
            tenant = numbers[topology.tenant(host.name)]
            document: dict[str, Any] = {"version": 1, "port": _identity(host, tenant)}
            if tenant not in told:
                told.add(tenant)
                tables = Tables(reduced, topology.seen_by(host.name))
                document["policy"] = _document(tables, tenant)
                count += len(tables.addresses) + len(tables.prefixes) + len(tables.verdicts)
            rules[Point("port", host.name)] = _text(document)
        return Native(rules, reduced, approximations, count)

    def render(self, native: Native, topology: Topology) -> Deployment:
        """The daemon, its program and the port's document, at every switch port; nothing on any host."""
        return {point: port_plan(point.host, text) for point, text in native.rules.items()}

    def covers(self, flow: Flow, topology: Topology) -> bool:
        """The flow leaves its host, and one of its ends is at a port of ours: hosts outside of the site are not."""
        return comes_by(flow, topology)

    def sightings(self, point: Point, lines: Iterable[bytes]) -> Iterator[Sighting]:
        """Every flow that a port told of. Raises ValueError naming the point where a line is not the switch's."""
        for line in lines:
            try:
                record = json.loads(line)
                if record.pop("t") == "flow":
                    yield Sighting(point=point.host, **record)
            except (ValueError, KeyError, TypeError, AttributeError) as err:
                shown = line[:80].decode(errors="replace")
                raise ValueError(f"{point.host}: not a telemetry line of the switch ({err!r}): {shown}") from err


def _identity(host: Host, tenant: int) -> dict[str, object]:
    return {"tenant": tenant, "host": host.name, "mac": host.mac, "v4": host.v4, "v6": host.v6}


def _document(tables: Tables, tenant: int) -> dict[str, Any]:
    return {"tenant": tenant, "allow": tables.policy.default == "allow", "options": OPTIONS, "rules": tables.rules,
            "addresses": tables.addresses, "prefixes": tables.prefixes, "services": tables.ports,
            "verdicts": tables.verdicts}


def _text(document: dict[str, Any]) -> str:
    """JSON with a line an entry, so that what changed shows."""
    lines = ['{"version": 1,', f'"port": {json.dumps(document["port"])}']
    if policy := document.get("policy"):
        lines[-1] += ","
        lines.append('"policy": {')
        tables = ("addresses", "prefixes", "verdicts")
        lines += [f"{json.dumps(key)}: {json.dumps(policy[key])}," for key in policy if key not in tables]
        for name in tables:
            entries = ",\n".join(json.dumps(entry) for entry in policy[name])
            lines.append(f'"{name}": [\n{entries}\n]{"" if name == tables[-1] else ","}')
        lines.append("}")
    return "\n".join([*lines, "}", ""])
