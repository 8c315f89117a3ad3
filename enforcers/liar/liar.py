"""An enforcer that says one thing and does another: what is planted is known, so what is measured can be checked.

Underneath is the router's firewall with its telemetry, or nothing; everything planted is planted at the router.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from typing import Literal

from enforcers.agentless.chokepoint import Chokepoint
from enforcers.liar.fault import TABLE
from lab.model import (
    Approximation,
    Deployment,
    Feature,
    Flow,
    Native,
    Point,
    PointPlan,
    Policy,
    Rule,
    Selector,
    Service,
    Sighting,
    Topology,
)

DIRECTORY = "/run/host/liar"
SOURCE = files("enforcers.liar") / "delay.bpf.c"


@dataclass(frozen=True, slots=True)
class Delay:
    """A busy wait on TCP packets to `address`:`port`: one a SYN, or one a segment with pushed payload.

    `ramp_ns` is added for every second since it was put in place. Only the difference to the same program with a wait
    of 0 is planted: to look at the packet costs, too.
    """

    address: str
    port: int
    wait_ns: int
    what: Literal["syn", "request"] = "syn"
    ramp_ns: int = 0


@dataclass(frozen=True, slots=True)
class Cap:
    """A token bucket for what goes towards `address`; `rate` as tc writes it, such as 2gbit, headers counted."""

    address: str
    rate: str


@dataclass(frozen=True, slots=True)
class Lie:
    """What is planted; nothing by default. `enforces` False: no firewall underneath, and no claim of one."""

    enforces: bool = True
    leak: Service | None = None  # let through whatever the policy says, both ways
    mute: int | None = None  # no reply comes back from this UDP port
    drop_rule: str | None = None  # this rule is not enforced
    lose_datagrams: tuple[str, float] | None = None  # UDP ports as nft writes them, share of the datagrams to them
    lose_telemetry: float = 0.0  # this share of the flows is never told of, evenly; `seed` says which
    seed: int = 1
    delay: Delay | None = None
    cap: Cap | None = None


class Liar:
    """Claims to do what the policy says, by the router's firewall, and does as its `lie` says."""

    def __init__(self, name: str, lie: Lie, delay_object: bytes = b"") -> None:
        """`delay_object`: delay.bpf.c compiled; needed where there is a delay."""
        self.name, self.lie = name, lie
        self._delay_object = delay_object
        self._honest = Chokepoint()
        self._untold: dict[tuple[object, ...], bool] = {}  # by flow, in the order of their first record
        self._from = random.Random(lie.seed).random()

    def needs(self) -> tuple[Feature, ...]:
        more = (Feature("tc-bpf", "the delay is a program on the router's interface"),) if self.lie.delay else ()
        return (*(self._honest.needs() if self.lie.enforces else ()), *more)

    def compile(self, policy: Policy, topology: Topology) -> Native:
        """Rules for a policy that is not the one which it says it enforces."""
        if not self.lie.enforces:
            nothing = Approximation("(all)", "omitted", "nothing is enforced")
            return Native({Point("router", topology.router): ""}, Policy("allow", ()), (nothing,), 0)
        said = self._honest.compile(policy, topology)
        done = self._honest.compile(_changed(policy, self.lie), topology)
        return replace(done, effective=said.effective, approximations=said.approximations)

    def render(self, native: Native, topology: Topology) -> Deployment:
        honest = self._honest.render(native, topology) if self.lie.enforces else dict.fromkeys(native.rules)
        return {point: self._plan(plan) for point, plan in honest.items()}

    def covers(self, flow: Flow, topology: Topology) -> bool:
        return self.lie.enforces and self._honest.covers(flow, topology)

    def sightings(self, point: Point, lines: Iterable[bytes]) -> Iterator[Sighting]:
        """The honest telemetry less a share of the flows: each whole, or not at all."""
        for seen in self._honest.sightings(point, lines):
            if not self._lost(seen):
                yield seen

    def _lost(self, seen: Sighting) -> bool:
        """Every so many flows one, so that as many are lost as are planted. Were it left to chance, a sound detector
        would fail once in a thousand times (seen once: 23 of 912 where 46 were due)."""
        key = (seen.proto, seen.source, seen.sport, seen.target, seen.dport)
        if key not in self._untold:
            at, share = len(self._untold), self.lie.lose_telemetry
            self._untold[key] = int((at + 1) * share + self._from) > int(at * share + self._from)
        return self._untold[key]

    def _plan(self, honest: PointPlan | None) -> PointPlan:
        """The honest plan, carried out by fault.py, which adds what is planted."""
        base = {verb: getattr(honest, verb) for verb in ("up", "ready", "collect", "down")} if honest else {}
        fault = {"name": self.name, "base": base, "nft": _nft(self.lie),
                 "cap": asdict(self.lie.cap) if self.lie.cap else None,
                 "delay": asdict(self.lie.delay) if self.lie.delay else None}

        def command(verb: str) -> tuple[str, ...]:
            return ("/usr/bin/python3", "-I", "-S", f"{DIRECTORY}/fault.py", verb, DIRECTORY)

        mine = {f"{DIRECTORY}/fault.py": (files("enforcers.liar") / "fault.py").read_bytes(),
                f"{DIRECTORY}/fault.json": json.dumps(fault).encode(), f"{DIRECTORY}/delay.o": self._delay_object}
        return PointPlan(files={**(honest.files if honest else {}), **mine}, up=(command("start"),),
                         ready=command("ready"), update=(), collect=command("collect"), down=(command("stop"),))


def _changed(policy: Policy, lie: Lie) -> Policy:
    rules = tuple(rule for rule in policy.rules if rule.name != lie.drop_rule)
    if lie.leak:
        rules += (Rule("(planted leak)", "allow", Selector(), Selector(), (lie.leak,)),)
    return replace(policy, rules=rules)


def _nft(lie: Lie) -> str:
    """The rule set that loses datagrams which the firewall has let pass; empty where none are lost."""
    statements = []
    if lie.lose_datagrams:
        ports, share = lie.lose_datagrams
        statements.append(f"udp dport {ports} numgen random mod 10000 < {round(share * 10000)} counter drop")
    if lie.mute:
        statements.append(f"udp sport {lie.mute} counter drop")
    if not statements:
        return ""
    return "\n".join([f"table inet {TABLE} {{", "chain planted {", "type filter hook forward priority 10;",
                      *statements, "}", "}", ""])
