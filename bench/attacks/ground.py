"""Where techniques act: the live lab, what the attacker has found so far, and a record of every attempt it makes.

The attacker begins with one process. It learns from what it holds (a host's interfaces and neighbours, whom its
processes are configured to call) and from what answers it. What it runs on a host it has taken is started by the
testbed: that the exploit gives such a hold was proved by the exploit, and how commands reach it is not measured.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

from bench.attacks.technique import DeniedError, NotHereError
from bench.instruments import as_declared
from bench.instruments.probe import truth
from bench.instruments.traffic import interpreter
from lab.backends.base import HostProcess
from lab.backends.served import ServedTestbed
from lab.bpf.build import native
from lab.hosts.attempts import Actor, Attempt, Attempted, Exploited
from lab.hosts.roles import calls
from lab.isolation import BPF_DIR
from lab.model import STRANGER, Attack, Flow, Host, Policy, Proto, Scenario, Truth
from lab.policy import NOBODY, NOBODY_UID, decide

PLACE = "/run/host/attack"
LIBRARY = f"{PLACE}/lib"  # the tool's parts, where they import each other as they do here
PYTHON, TOOL = f"{PLACE}/python", f"{LIBRARY}/bench/attacks/host_tool.py"
PARTS = ("host_base.py", "host_names.py", "host_root.py", "host_tool.py")
DROP_DIR = f"{PLACE}/drop"  # where any user of a host may write
ENVIRONMENT = {"PYTHONHOME": sys.base_prefix, "PYTHONPATH": LIBRARY, "PYTHONDONTWRITEBYTECODE": "1"}
TIMEOUT_S = 0.4
DEADLINE_S = 15.0  # for one line of a tool
AGAIN = "4"  # an agent may take a moment to know an executable; an attacker tries again
NEAR = 32  # addresses of each network that are swept: the first ones
ROOT, DROPPED = "(root)", STRANGER  # as whom a tool runs, beside the declared processes
PORTS = (21, 22, 23, 25, 53, 80, 88, 110, 111, 135, 139, 143, 389, 443, 445, 554, 587, 636, 993, 995, 1433, 1521, 1883,
         2049, 2375, 3000, 3306, 3389, 5000, 5432, 5900, 5985, 6379, 6443, 8000, 8080, 8443, 8888, 9000, 9090, 9100,
         9200, 11211, 27017)  # what port scanners try first

Service = tuple[str, int]  # IPv4 address, TCP port
Revoke = Callable[[Policy], AbstractContextManager[None]]  # a policy in force instead of the scenario's, for a while


class ToolError(OSError):
    """The attacker's own tool did not start or died: a fault of the lab, not a defence."""


@dataclass(slots=True)
class Known:
    """What the attacker knows: services that answered each of its actors, hosts that it holds, whom these call."""

    answered: dict[Actor, tuple[Service, ...]] = field(default_factory=dict)
    held: dict[str, Actor] = field(default_factory=dict)
    called: dict[Actor, tuple[Service, ...]] = field(default_factory=dict)


class Running:
    """A tool that waits for others. Closed, it ends."""

    def __init__(self, process: HostProcess, where: str, keep: Callable[[dict[str, Any]], None]) -> None:
        self._process, self._where, self._keep = process, where, keep
        self._unread = b""

    def said(self, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """Its next line. Raises ToolError if it ends without one, or says nothing in time."""
        found = self.heard(timeout_s)
        if found is None:
            raise ToolError(f"{self._where}: said nothing for {timeout_s:g} s")
        return found

    def heard(self, timeout_s: float) -> dict[str, Any] | None:
        """Its next line, or None if there is none by then. Raises ToolError if it has ended."""
        deadline, fd = time.monotonic() + timeout_s, self._process.stdout.fileno()
        while b"\n" not in self._unread:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            data = os.read(fd, 65536)
            if not data:
                raise ToolError(f"{self._where}: ended without a word")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        if found.get("failed") in (errno.EPERM, errno.EACCES):
            raise DeniedError(f"{self._where}: {found['why']}")
        if "failed" in found:
            raise ToolError(f"{self._where}: {found['why']}")
        self._keep(found)
        return found

    def tell(self) -> None:
        self._process.stdin.write(b"\n")

    def finish(self) -> dict[str, Any]:
        """End its input; its last line."""
        self._process.stdin.close()
        return self.said()

    def end(self) -> None:
        """End its input, and so itself, so that its ports are free again; what does not end is killed."""
        with contextlib.suppress(OSError, TimeoutError):
            self._process.stdin.close()
            self._process.wait(1.0)
        self._process.kill()


class Ground:
    """One lab under one arm, as the attacker meets it. `judge` is the referee's: techniques ask it only for the score.
    """

    def __init__(self, testbed: ServedTestbed, scenario: Scenario, attack: Attack, revoke: Revoke,
                 agents: Collection[str] = ()) -> None:
        self.testbed, self.scenario, self.topology = testbed, scenario, testbed.topology
        self.revoke, self.agents = revoke, frozenset(agents)
        self.rng = random.Random(scenario.seed)
        self.foothold = self.actor(attack.foothold_host, attack.foothold_process)
        self.known = Known(held={self.foothold.host: self.foothold})
        self.truths: list[Truth] = []
        self._at = {host.v4: host.name for host in self.topology.hosts.values()}
        self._calls = calls(self.topology)
        self._armed: set[str] = set()
        self._posing: dict[tuple[str, str], str] = {}

    # --- who and where ---

    def actor(self, host: str, process: str) -> Actor:
        """The declared process on a host, or the binary dropped there (DROPPED)."""
        user = NOBODY if process == DROPPED else self.topology.processes[process].user
        return Actor(host, process, user)

    def dropped(self, host: str) -> Actor:
        return self.actor(host, DROPPED)

    def find(self, what: str, right: Callable[[Host], bool]) -> Host:
        """The first host that is so. Raises NotHereError, saying `what` is lacking."""
        for host in self.topology.hosts.values():
            if right(host):
                return host
        raise NotHereError(f"the scenario has no {what}")

    def another(self) -> Host:
        """A host that is held beside the foothold's, the first that was taken. Raises NotHereError."""
        return self.find("host that is held beside the foothold",
                         lambda h: h.name in self.known.held and h.name != self.foothold.host)

    def unmanaged(self) -> Host:
        return self.find("host that can take no agent", lambda h: h.agent == "impossible" and not h.external)

    def outside(self) -> Host:
        return self.find("host that is external", lambda h: h.external)

    def serves(self, host: Host, proto: str) -> tuple[str, int]:
        """A process of a host that listens, and its first port. Raises NotHereError."""
        for name in host.runs:
            for service in self.topology.processes[name].listens:
                if service.proto == proto:
                    return name, service.low
        raise NotHereError(f"{host.name} offers nothing over {proto}")

    def listens(self, host: Host, proto: str, port: int) -> str:
        """Which process of a host listens there; empty if none."""
        return next((name for name in host.runs for s in self.topology.processes[name].listens
                     if s.proto == proto and s.low <= port <= s.high), "")

    def name(self, address: str) -> str:
        return self._at.get(address, address)

    # --- the referee ---

    def allowed(self, actor: Actor, service: Service, proto: str = "tcp") -> bool:
        """Whether the policy allows it; an address where nobody is belongs to nobody's policy."""
        target = self._at.get(service[0])
        if target is None:
            return False
        owner = self.listens(self.topology.hosts[target], proto, service[1])
        flow = Flow(actor.host, actor.process, actor.user, target, owner or STRANGER,
                    "udp" if proto == "udp" else "tcp", service[1], 4)
        return decide(self.scenario.policy, flow, self.topology).allow

    # --- learning ---

    def networks(self, host: str) -> list[str]:
        """Addresses worth trying from a host: its neighbours, and those near whomever its processes call."""
        shown = self.testbed.run(host, ["ip", "-j", "-4", "addr", "show", "dev", "eth0"]).stdout
        own = json.loads(shown)[0]["addr_info"][0]
        near = ip_network(f"{own['local']}/{own['prefixlen']}", strict=False)
        beside = json.loads(self.testbed.run(host, ["ip", "-j", "-4", "neigh", "show", "dev", "eth0"]).stdout or b"[]")
        found = {one["dst"]: None for one in beside if IPv4Address(one["dst"]) in near}
        for address, _port in self.configured(host):
            base = ip_network(f"{address}/24", strict=False).network_address
            found |= {str(base + step): None for step in range(1, NEAR + 1)}
        found.pop(own["local"], None)
        return list(found)

    def configured(self, host: str) -> tuple[Service, ...]:
        """Whom the processes of a host that the attacker holds are told to call, as their configuration says."""
        return tuple(dict.fromkeys(one for actor, targets in self._calls.items() if actor.host == host
                                   for one in targets))

    def sweep(self, actor: Actor) -> tuple[Service, ...]:
        """Every usual port of every address worth trying, by connecting; what answered. Once an actor."""
        if actor not in self.known.answered:
            services = [(address, port) for address in self.networks(actor.host) for port in PORTS]
            self.rng.shuffle(services)
            got = self.probe(actor, services)
            self.known.answered[actor] = tuple(sorted(s for s, seen in zip(services, got, strict=True)
                                                      if seen.outcome == "OPEN"))
        return self.known.answered[actor]

    # --- acting through labctl's own services ---

    def probe(self, actor: Actor, services: Sequence[Service], proto: str = "tcp") -> list[Attempted]:
        """Connect as `actor` to each (for udp: ask), beside each other."""
        way: Proto = "udp" if proto == "udp" else "tcp"
        got = self.testbed.services.probe([Attempt(actor, way, 4, address, port) for address, port in services],
                                          TIMEOUT_S)
        self._keep(got)
        return list(got)

    def opens(self, actor: Actor, service: Service, proto: str = "tcp") -> bool:
        return self.probe(actor, [service], proto)[0].outcome == "OPEN"

    def exploit(self, actor: Actor, services: Sequence[Service]) -> list[Exploited]:
        """The exploit at each, with a fresh nonce; hosts that obeyed are held from now on."""
        got = self.testbed.services.exploit_all([Attempt(actor, "tcp", 4, *one) for one in services],
                                                [self.rng.getrandbits(63) for _ in services], TIMEOUT_S)
        self._keep([one.attempted for one in got])
        for one in got:
            if one.owned:
                self.known.held.setdefault(one.host, Actor(one.host, one.process, one.user))
        return list(got)

    def _keep(self, got: Sequence[Attempted]) -> None:
        for one in got:
            target = self._at.get(one.attempt.address)
            if target:  # where nobody is, there is nothing that an arm could be said to have missed
                actor = one.attempt.actor
                flow = Flow(actor.host, actor.process, actor.user, target, "", one.attempt.proto, one.attempt.port, 4)
                self.truths.append(truth(flow, one, self.topology, "attack"))

    # --- acting through tools ---

    def secret(self, size: int = 48) -> bytes:
        return self.rng.randbytes(size)

    def put(self, host: str, path: str, content: bytes) -> str:
        self.testbed.put(host, {path: content})
        return path

    def tool(self, host: str, who: str, *words: str, source: str = "") -> dict[str, Any]:
        """The last line of a tool that runs to its end as a declared process, DROPPED or ROOT."""
        with self.running(host, who, *words, source=source) as one:
            return one.said()

    @contextlib.contextmanager
    def running(self, host: str, who: str, *words: str, ready: bool = False, source: str = "") -> Iterator[Running]:
        """A tool that waits for others; with `ready`, entered when it says so. `source`: the address it takes."""
        declared = who if who in self.topology.processes else None
        self._arm(host)
        python = self._placed(host, declared) if declared else PYTHON
        drop = ("--as", str(self.topology.users.get(NOBODY, NOBODY_UID))) if who == DROPPED else ()
        again = ("--again", AGAIN) if declared else ()
        process = self.testbed.spawn(host, [python, "-S", TOOL, *drop, *again, *words], process=declared,
                                     env=ENVIRONMENT)
        path = self.topology.processes[declared].path if declared else PYTHON
        user = self.topology.processes[declared].user if declared else NOBODY if drop else "root"
        keep = self._keeper(host, declared or STRANGER, path, user, source)
        one = Running(process, f"{words[0]} on {host}", keep)
        try:
            if ready:
                one.said()
            yield one
        finally:
            one.end()

    @contextlib.contextmanager
    def program(self, host: str, source: Path, *words: str) -> Iterator[Running]:
        """A program in C as root, compiled on this machine; entered when it says that it is ready."""
        path = f"{PLACE}/{source.stem}"
        self.testbed.put(host, {path: native(source)})
        one = Running(self.testbed.spawn(host, [path, *words]), f"{source.stem} on {host}", lambda _line: None)
        try:
            one.said()
            yield one
        finally:
            one.end()

    def _placed(self, host: str, process: str) -> str:
        """The tool's interpreter at the path of a declared process; once a lab, since an agent has to look at it."""
        if (host, process) not in self._posing:
            self._posing[host, process] = as_declared.placed(self.testbed, host, process, interpreter())
        return self._posing[host, process]

    def _arm(self, host: str) -> None:
        if host not in self._armed:
            here, there = Path(__file__), f"{LIBRARY}/bench/attacks"
            parts = {f"{there}/{name}": here.with_name(name).read_bytes() for name in PARTS}
            empty = dict.fromkeys((f"{LIBRARY}/bench/__init__.py", f"{there}/__init__.py", f"{DROP_DIR}/.here"), b"")
            self.testbed.put(host, {PYTHON: interpreter().read_bytes(), **parts, **empty})
            self.testbed.run(host, ["chmod", "1777", DROP_DIR])
            self._armed.add(host)

    def _keeper(self, host: str, process: str, path: str, user: str, source: str) -> Callable[[dict[str, Any]], None]:
        def keep(line: dict[str, Any]) -> None:
            for note in line.get("attempts", ()):
                self.truths.append(Truth(
                    "attack", host, process, path, user,
                    self.name(note["target"]), note["proto"], source or self.topology.hosts[host].v4, note["sport"],
                    note["target"], note["port"], note["start"], note["end"], note["bytes"], note["outcome"],
                    note["outcome"] == "OPEN" and note["proto"] == "tcp"))
        return keep

    # --- impairing: what root on a host does to an agent that the lab keeps elsewhere ---

    def end_agents(self) -> int:
        """End the daemons of an arm with agents; how many. One may serve every host of a lab, so all are ended."""
        ended = 0
        for host in sorted(self.agents):
            cgroup = self.testbed.cgroup_of(host, True)
            for pid in (cgroup / "cgroup.procs").read_text().split() if cgroup else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
                    ended += 1
        return ended

    def unpin(self) -> int:
        """Let go of the kernel programs that an arm with agents keeps beside the hosts; how many files."""
        files = [path for path in BPF_DIR.glob("*/**/*") if not path.is_dir()] if self.agents else []
        for path in files:
            path.unlink(missing_ok=True)
        return len(files)

    @contextlib.contextmanager
    def borrowed(self, host: str, process: str, proto: str, port: int) -> Iterator[None]:
        """The service on a port gives it up for a tool, and takes it back."""
        server = self.actor(host, process)
        self.testbed.services.request(server, "unlisten", proto, str(port))
        try:
            yield
        finally:
            self.testbed.services.request(server, "listen", proto, str(port))
