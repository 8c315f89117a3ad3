"""What a backend offers to the instruments: live hosts, their services, and a way to put an enforcer in place.

Three drivers implement it: `mininet_lab` (namespaces) and `docker_lab` (containers), both with real packets, and `fake`
(in memory, able to lie).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Protocol

from lab.hosts.attempts import Actor, Attempt, Attempted, Exploited, LoopResult
from lab.model import Deployment, Family, Flow, Native, Point, Topology


@dataclass(frozen=True, slots=True)
class Completed:
    status: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds by cgroup since the lab stood up, and proportional memory now, by host and its daemons.

    `*_system_s`: of these seconds, those in the kernel; empty where the backend cannot tell.
    """

    host_cpu_s: Mapping[str, float]
    daemon_cpu_s: Mapping[str, float]
    daemon_rss_bytes: Mapping[str, int]
    source: str
    host_system_s: Mapping[str, float] = field(default_factory=dict)
    daemon_system_s: Mapping[str, float] = field(default_factory=dict)


class Services(Protocol):
    """The built-in services of all hosts, under command. An Actor is a (host, process, user)."""

    def probe(self, attempts: Sequence[Attempt], timeout_s: float, window: int = ...) -> Sequence[Attempted]: ...
    def exploit_all(self, attempts: Sequence[Attempt], nonces: Sequence[int],
                    timeout_s: float) -> Sequence[Exploited]: ...
    def crr(self, actor: Actor, family: Family, address: str, port: int, seconds: float,
            rate: float = ...) -> LoopResult: ...
    def rr(self, actor: Actor, family: Family, address: str, port: int, seconds: float) -> LoopResult: ...
    def request(self, actor: Actor, verb: str, *args: str, timeout_s: float = ...) -> tuple[str, ...]: ...
    def drain_events(self) -> list[tuple[Actor, tuple[str, ...]]]: ...


class HostProcess(Protocol):
    """A process on a host, started by the testbed: binary pipes, a way to wait and to end it."""

    @property
    def stdin(self) -> IO[bytes]: ...
    @property
    def stdout(self) -> IO[bytes]: ...
    @property
    def pid(self) -> int: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Installed:
    """One arm as it stands in the lab: what it cost to deploy. `bytes_per_host` is None where nothing was placed."""

    seconds: float
    bytes_per_host: float
    points: int


class Enforcement(Protocol):
    """Puts one arm's Deployment in place on a testbed, and takes it away. `install` deploys; `up`/`down` replay."""

    def install(self, native: Native, deployment: Deployment) -> Installed: ...
    def up(self) -> float: ...
    def down(self) -> None: ...
    def collect(self) -> Mapping[Point, list[bytes]]: ...


class Testbed(Protocol):
    """Live hosts. Five verbs beside its parts: run, spawn, put, usage, enforcement."""

    @property
    def topology(self) -> Topology: ...
    @property
    def services(self) -> Services: ...
    def run(self, host: str, argv: Sequence[str], *, input: bytes = b"", daemon: bool = False) -> Completed: ...
    def spawn(self, host: str, argv: Sequence[str], *, process: str | None = None,
              env: Mapping[str, str] | None = None) -> HostProcess: ...
    def put(self, host: str, files: Mapping[str, bytes]) -> None: ...
    def usage(self, memory: bool = True) -> Usage: ...
    def enforcement(self, arm: str, covers: Callable[[Flow], bool]) -> Enforcement: ...

