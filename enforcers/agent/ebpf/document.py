"""One host's policy as text, a line an entry: what `compile` says, what `render` makes the host's files of. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from enforcers.agent.ebpf.classes import Executable, Rules
from enforcers.agent.ebpf.encode import encode
from enforcers.agent.ebpf.tables import Decision, Key, Tables
from lab.hosts.scripts import INTERPRETERS
from lab.model import Host, Topology
from lab.policy import NOBODY, NOBODY_UID

VERSION = 1


def document(host: Host, made: Tables, rules: Rules, settings: Mapping[str, Any]) -> str:
    """JSON: what the agent has to know to name things, and the tables in lists."""
    content = {
        "version": VERSION, "host": host.name, **settings,
        "addresses": [host.v4, host.v6],
        "users": {str(uid): user for uid, user in sorted(_users(rules.topology).items())},
        "rules": [rule.name for rule in rules.policy.rules],
        "executables": [[one.id, one.path, one.sha256] for one in rules.executables],
        "scripts": [[Executable(one.path, None).id, INTERPRETERS[one.interpreter], one.path]
                    for one in rules.topology.processes.values() if one.interpreter],
        "expected": sorted({rules.topology.processes[name].path for name in host.runs}),
        "default": made.default, "loopback": made.loopback, "claims": made.claims,
        "own": [[family, where] for family, where in made.own.items()],
        "who": [[*key, who] for key, who in made.who.items()],
        "where": [[address, where] for address, where in made.where.items()],
        "networks": [[prefix, where] for prefix, where in made.networks.items()],
        "ports": [[*key, svc] for key, svc in made.ports.items()],
        "verdicts": [[*key, *decision] for key, decision in made.verdicts.items()],
    }
    return "\n".join(_lines(content))


def files(text: str) -> tuple[bytes, bytes]:
    """policy.json and tables.bin, of a document."""
    content = json.loads(text)
    about, blob = encode(_tables(content))
    for name in ("own", "who", "where", "networks", "ports", "verdicts"):
        del content[name]
    return json.dumps({**content, "tables": about}).encode() + b"\n", blob


def _users(topology: Topology) -> dict[int, str]:
    """User names by uid: the scenario's, and those of executables that it does not declare."""
    return {0: "root", NOBODY_UID: NOBODY} | {uid: user for user, uid in topology.users.items()}


def _tables(content: Mapping[str, Any]) -> Tables:
    return Tables(
        content["host"], content["default"], content["loopback"], content["claims"],
        own=dict(content["own"]),
        who={(executable, uid): who for executable, uid, who in content["who"]},
        where=dict(content["where"]), networks=dict(content["networks"]),
        ports={(proto, low, high): svc for proto, low, high, svc in content["ports"]},
        verdicts={Key(*row[:5]): Decision(*row[5:]) for row in content["verdicts"]},
    )


def _lines(content: Mapping[str, Any]) -> Iterator[str]:
    """JSON with each list's entries on lines of their own, so that a change of policy is a change of lines."""
    yield "{"
    last = len(content) - 1
    for index, (key, value) in enumerate(content.items()):
        comma = "," if index < last else ""
        if isinstance(value, list) and value:
            yield f" {json.dumps(key)}: ["
            yield ",\n".join(f"  {json.dumps(entry)}" for entry in value)
            yield f" ]{comma}"
        else:
            yield f" {json.dumps(key)}: {json.dumps(value)}{comma}"
    yield "}\n"
