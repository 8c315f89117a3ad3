"""What is installed and what each arm claims, asked on a small network, the same for all. Pure but for imports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from bench import registry
from bench.contract import EnforcerError, Guarded
from bench.installed import PLACES, Answer, Entry, Installed
from lab.bpf.build import BpfBuildError
from lab.model import (
    Deployment,
    Family,
    Flow,
    Host,
    Native,
    Point,
    Policy,
    Process,
    Proto,
    Rule,
    Segment,
    Selector,
    Service,
    Topology,
)
from lab.policy import decide

Pair = tuple[str, str]

# --- the canonical network ------------------------------------------------------------------------

_SEGMENTS = {name: Segment(name, f"192.0.{n}.0/24", f"fd00:{n}::/64", f"192.0.{n}.1", f"fd00:{n}::1")
             for n, name in enumerate(("left", "right"), 1)}
_USERS = {"alice": 20000, "bob": 20001, "nobody": 65534}
_WEB, _SSH = Service("tcp", 80, 80), Service("tcp", 22, 22)
_PROCESSES = {
    "app": Process("app", "/opt/app", "alice", 20000, (_WEB, _SSH)),
    "other": Process("other", "/opt/other", "bob", 20001),
}


def _host(number: int, name: str, segment: str, agent: Literal["possible", "impossible"] = "possible") -> Host:
    net = list(_SEGMENTS).index(segment) + 1
    return Host(name, segment, f"192.0.{net}.{number}", f"fd00:{net}::{number}", f"02:00:00:00:00:{number:02x}",
                {"role": name}, tuple(_PROCESSES), agent)


TOPOLOGY = Topology(
    _SEGMENTS,
    {host.name: host for host in (_host(11, "here", "left"), _host(12, "near", "left"), _host(13, "far", "right"),
                                  _host(14, "bare", "right", "impossible"), _host(15, "mute", "left", "impossible"))},
    _PROCESSES, _USERS)
# Two rules, one that names a process and one that names a user: what an arm makes of them shows what it can tell apart.
POLICY = Policy("deny", (
    Rule("by process", "allow", Selector({"process": ("app",)}), Selector(), (_WEB,)),
    Rule("by user", "allow", Selector({"user": ("alice",)}), Selector(), (_SSH,)),
))


def _flow(pair: Pair, process: str, proto: Proto = "tcp", port: int = 80, family: Family = 4) -> Flow:
    receiver = "" if proto == "icmp" else "app"
    return Flow(pair[0], process, _PROCESSES[process].user, pair[1], receiver, proto, port, family)


# --- asking ---------------------------------------------------------------------------------------


def catalogue() -> tuple[Entry, ...]:
    """Every installed arm, each asked all its verbs once; a broken one is an entry too."""
    return tuple(_entry(arm) for arm in registry.installed())


def _entry(arm: Installed) -> Entry:
    try:
        enforcer = registry.load(arm.name)
        needs = enforcer.needs()
        native = enforcer.compile(POLICY, TOPOLOGY)
        deployment = _rendered(enforcer, native)
        enforcer.sightings(next(iter(deployment), Point("router", TOPOLOGY.router)), [])
        return Entry(arm, enforcer.description, needs, coverage(enforcer, native))
    except EnforcerError as err:
        return Entry(arm, broken=str(err))


def _rendered(enforcer: Guarded, native: Native) -> Deployment:
    """What it places; nothing where its program cannot be compiled: what it needs says so, and it is not broken."""
    try:
        return enforcer.render(native, TOPOLOGY)
    except EnforcerError as err:
        if isinstance(err.__cause__, BpfBuildError):
            return {}
        raise


def coverage(enforcer: Guarded, native: Native) -> dict[str, Answer]:
    """What `enforcer` claims of each class; of ICMP, IPv6 and owners where it claims TCP over IPv4 at all."""
    found: dict[str, Answer] = {name: _all([enforcer.covers(_flow(pair, "app"), TOPOLOGY)])
                                for name, pair in PLACES.items()}
    claimed = [pair for name, pair in PLACES.items() if found[name] == "yes"]
    found["icmp"] = _all([enforcer.covers(_flow(pair, "app", "icmp", 0), TOPOLOGY) for pair in claimed])
    found["ipv6"] = _all([enforcer.covers(_flow(pair, "app", family=6), TOPOLOGY) for pair in claimed])
    found["spoofed source"] = "yes" if enforcer.stops_spoofing else "no"
    found["process"], found["user"] = (_all([_tells_apart(native, pair, port) for pair in claimed])
                                       for port in (80, 22))
    return found


def _tells_apart(native: Native, pair: Pair, port: int) -> bool:
    """Whether the compiled policy says of either owner's flow what the written one says."""
    flows = [_flow(pair, process, port=port) for process in _PROCESSES]
    return all(decide(native.effective, flow, TOPOLOGY).allow == decide(POLICY, flow, TOPOLOGY).allow
               for flow in flows)


def _all(answers: Sequence[bool]) -> Answer:
    if not answers:
        return "–"
    return "yes" if all(answers) else "partly" if any(answers) else "no"
