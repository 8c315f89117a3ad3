"""Every value that flows through the lab, frozen: scenario, policy, flows, deployments, observations.

Nouns only. Nothing here does I/O; verbs live in the modules that make these values.
Times are seconds of `CLOCK_MONOTONIC` (one clock for every host of a local lab) unless a suffix says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, Protocol

Family = Literal[4, 6]
Proto = Literal["tcp", "udp", "icmp"]
FAMILIES: tuple[Family, ...] = (4, 6)
ORIGINAL, REWRITTEN = "(original)", "(rewritten)"  # contents of built-in executables, until they are known
STRANGER = "(stranger)"  # the process name of an executable that the scenario does not declare
TRIED_AGAIN = "again"  # the kind of a truth: the second look's, which counts for no share of anything


# --- topology ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Segment:
    """One layer-2 network: a bridge, its two prefixes (CIDR text) and the router's address on each.

    `tenant` "": of the site, behind its router. Any other has an address plan of its own, and no router at all.
    """

    name: str
    v4: str
    v6: str
    gateway4: str
    gateway6: str
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Process:
    """One declared process. `path` is its identity; `uid` is the number that `user` stands for inside the lab.

    `sha256`: the content that it has, and that a selector which names it asks for (ORIGINAL or REWRITTEN: labctl's own,
    whose digest is known once it is compiled); None: any.
    """

    name: str
    path: str
    user: str
    uid: int
    listens: tuple[Service, ...] = ()
    calls: tuple[str, ...] = ()
    vulnerable: bool = False
    sha256: str | None = None
    command: tuple[str, ...] | None = None  # a real program serves what it listens on; (): as its image says
    environment: Mapping[str, str] = field(default_factory=dict)
    interpreter: str | None = None  # the name of what runs `path`, a script
    poses_as: str | None = None  # what it calls itself in lists of processes, which is not its identity
    image: str | None = None  # of its own container, on a pod; None: labctl's own

    @property
    def real(self) -> bool:
        """Whether a program that is not labctl's own serves its declared ports."""
        return self.command is not None


@dataclass(frozen=True, slots=True)
class Host:
    """One host: where it is, what it is called by selectors, what runs on it."""

    name: str
    segment: str
    v4: str
    v6: str
    mac: str
    labels: Mapping[str, str] = field(default_factory=dict)
    runs: tuple[str, ...] = ()
    agent: Literal["possible", "impossible"] = "possible"
    external: bool = False
    image: str | None = None  # of the container that it is; None: labctl's own
    pod: bool = False  # its processes have a container each, which share its network; where there are containers

    @property
    def takes_agent(self) -> bool:
        return self.agent == "possible" and not self.external

    def address(self, family: Family) -> str:
        return self.v4 if family == 4 else self.v6


@dataclass(frozen=True, slots=True)
class Topology:
    """Segments, hosts and processes, each by name, in the order of the scenario. `users` maps a user to its uid."""

    segments: Mapping[str, Segment]
    hosts: Mapping[str, Host]
    processes: Mapping[str, Process]
    users: Mapping[str, int]
    router: str = "router"

    def tenant(self, host: str) -> str:
        """The tenant of a host, "" for the site's own."""
        segment = self.segments.get(self.hosts[host].segment)
        return segment.tenant if segment else ""

    @property
    def tenants(self) -> tuple[str, ...]:
        """Every tenant that has a segment, in the order of the scenario."""
        return tuple(dict.fromkeys(segment.tenant for segment in self.segments.values()))

    def seen_by(self, host: str) -> Topology:
        """What an address can mean to a host: the topology without the segments and hosts of other tenants."""
        return self.of_tenant(self.tenant(host))

    def of_tenant(self, tenant: str) -> Topology:
        """The segments and hosts of one tenant; the topology itself where there is no other."""
        if self.tenants in ((), (tenant,)):
            return self
        segments = {name: segment for name, segment in self.segments.items() if segment.tenant == tenant}
        hosts = {name: host for name, host in self.hosts.items() if host.segment in segments}
        return replace(self, segments=segments, hosts=hosts)


# --- policy -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Service:
    """Ports `low`..`high` of one protocol, in one family or both (None). icmp and any have ports 0..65535.

    `proto` "any" matches every protocol and port.
    """

    proto: Literal["tcp", "udp", "icmp", "any"]
    low: int = 0
    high: int = 65535
    family: Family | None = None


@dataclass(frozen=True, slots=True)
class Selector:
    """One end of a rule: keys ANDed, the values of a key ORed, an absent key constrains nothing.

    `keys` maps a key (label name, or host, segment, cidr, process, user) to its values. Empty means `any: true`.
    """

    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    verdict: Literal["allow", "deny"]
    source: Selector
    target: Selector
    services: tuple[Service, ...]  # ORed


@dataclass(frozen=True, slots=True)
class Policy:
    """An explicit default and an unordered set of rules: deny overrides allow overrides the default."""

    default: Literal["allow", "deny"]
    rules: tuple[Rule, ...]
    loopback: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    allow: bool
    rule: str  # the name of the rule that decided, or "default"


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """One attempt that could be made: who (host, process, user) asks whom (host, process) for what.

    `process` on either end is a declared name or STRANGER. `port` is 0 for icmp; for icmp `target_process` is "".
    """

    source: str
    process: str
    user: str
    target: str
    target_process: str
    proto: Proto
    port: int
    family: Family

    def __str__(self) -> str:
        service = "icmp" if self.proto == "icmp" else f"{self.port}/{self.proto}"
        owner = f"/{self.target_process}" if self.target_process else ""
        return f"{self.source}/{self.process}({self.user}) > {self.target}{owner} {service} v{self.family}"


# --- scenario ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Traffic:
    """Honest load: `process` on each of `clients` runs `locustfile`, at `rate` requests per second in all."""

    clients: tuple[str, ...]
    process: str
    locustfile: str  # absolute path
    rate: float
    target_hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Attack:
    foothold_host: str
    foothold_process: str
    goals: tuple[str, ...]  # host names; reaching any one is reaching the goal


@dataclass(frozen=True, slots=True)
class Replay:
    """One kind of legitimate flow that happened in recorded traffic; `foreseen` is False if it came after training."""

    flow: Flow
    count: int
    foreseen: bool


Backend = Literal["mininet", "docker"]  # what hosts are made of


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    path: str  # absolute path of the file it was read from
    topology: Topology
    policy: Policy
    traffic: Traffic | None
    attack: Attack | None
    arms: tuple[str, ...]
    seed: int
    replay: tuple[Replay, ...] = ()
    invented: tuple[str, ...] = ()  # what an importer made up, by which rule
    backend: Backend = "mininet"


# --- enforcement ------------------------------------------------------------------------------

PointKind = Literal["host", "node", "port", "router"]


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """An enforcement point: a host itself, the machine that carries it as a container, its switch port, or the router.
    """

    kind: PointKind
    host: str  # for kind "router": the router's name


@dataclass(frozen=True, slots=True)
class Approximation:
    """How one rule is enforced otherwise than written, and why."""

    rule: str
    kind: Literal["widened", "narrowed", "omitted"]
    reason: str


@dataclass(frozen=True, slots=True)
class Native:
    """A compiled policy: the enforcer's own rules per point (text), what they amount to, what they could not say.

    `neighbours`: "permanent" as the lab has them, or "asked" where the network has to be able to answer for a host: the
    lab then lets hosts forget those of their segment while the arm stands.
    """

    rules: Mapping[Point, str]
    effective: Policy
    approximations: tuple[Approximation, ...]
    count: int  # native rules or set elements in all
    neighbours: Literal["permanent", "asked"] = "permanent"


@dataclass(frozen=True, slots=True)
class PointPlan:
    """What to place and run at one point: absolute paths there, and commands as argv, never as a shell line.

    `up` returns when what it started answers; `ready` exits 0 when enforcement is in force; `collect` prints telemetry
    on standard output; `down` removes all that `up` made. Daemons run beside the host, in a cgroup of their own.
    """

    files: Mapping[str, bytes]
    up: tuple[tuple[str, ...], ...]
    ready: tuple[str, ...]
    update: tuple[tuple[str, ...], ...]
    collect: tuple[str, ...]
    down: tuple[tuple[str, ...], ...]


Deployment = Mapping[Point, PointPlan]


@dataclass(frozen=True, slots=True)
class Sighting:
    """What an enforcer's telemetry says of one flow: one shape for all. What a dialect cannot say is None.

    `process` and `user` are those of the source end (path, user name); `target_process` of the other end.
    `bytes` counts what the dialect counts in both directions (conntrack: IP bytes), `packets` likewise.
    """

    point: str  # host or router that saw it
    time: float
    proto: str
    source: str  # address
    sport: int
    target: str
    dport: int
    process: str | None = None
    user: str | None = None
    target_process: str | None = None
    bytes: int | None = None
    packets: int | None = None
    verdict: Literal["allow", "deny", "would-deny"] | None = None
    rule: str | None = None


@dataclass(frozen=True, slots=True)
class Feature:
    """Something an arm needs of the machine. `probe` names a check of lab.features."""

    name: str
    why: str


class Enforcer(Protocol):
    """One way of enforcing: five verbs and a name. It does no I/O; it says what to place and run."""

    name: str

    def needs(self) -> tuple[Feature, ...]:
        """What the machine must offer; one missing makes the arm unsupported, never weaker."""

    def compile(self, policy: Policy, topology: Topology) -> Native:
        """Its own rules for `policy`, what they amount to, and each approximation made."""

    def render(self, native: Native, topology: Topology) -> Deployment:
        """What to place and run at every enforcement point."""

    def covers(self, flow: Flow, topology: Topology) -> bool:
        """Whether it claims to enforce on `flow` at all."""

    def sightings(self, point: Point, lines: Iterable[bytes]) -> Iterable[Sighting]:
        """The telemetry that `collect` printed at `point`, in the one shape."""


# --- what happened ----------------------------------------------------------------------------


class Outcome(StrEnum):
    """What a client saw, without what it means."""

    OPEN = "OPEN"  # connected and the echo came back (udp, icmp: the reply came back)
    REFUSED = "REFUSED"  # ECONNREFUSED
    DENIED_LOCALLY = "DENIED_LOCALLY"  # EPERM or EACCES from the call itself
    UNREACHABLE = "UNREACHABLE"  # EHOSTUNREACH, ENETUNREACH
    TIMED_OUT = "TIMED_OUT"  # nothing came by the deadline
    BROKEN = "BROKEN"  # connected, then no echo or a reset; or the attempt itself failed (see errno)


@dataclass(frozen=True, slots=True)
class Observation:
    """What happened to one flow. `arrived` is proof from the target's side, not an inference."""

    flow: Flow
    outcome: Outcome
    errno: int
    arrived: bool
    start: float
    connect_us: float | None
    total_us: float | None
    sport: int


@dataclass(frozen=True, slots=True)
class Truth:
    """One attempt that was really made, as its client knows it, joined with what the target saw."""

    kind: str  # probe, call, traffic, attack, replay, or TRIED_AGAIN
    source: str  # host
    process: str  # declared name, or STRANGER
    path: str
    user: str
    target: str  # host
    proto: str
    source_address: str
    sport: int
    target_address: str
    dport: int
    start: float
    end: float
    bytes: int  # payload, both directions, as the client counted
    outcome: str
    arrived: bool
