"""A lab that is left standing: what its first process does until it is told to go, and how it answers."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from bench import registry, testbeds
from bench.asking import Agents, AskError, from_request
from bench.contract import EnforcerError, Guarded
from bench.explain import Seen, explain
from bench.instruments import nft_trace
from bench.instruments.probe import attempt as to_attempt
from bench.instruments.probe import observation, probe
from lab import flow_text
from lab.backends.base import Enforcement
from lab.backends.docker_engine import Engine
from lab.backends.served import LabDownError, ServedTestbed
from lab.deploy.enforcement import DeployError
from lab.hosts.build import build
from lab.hosts.control import ServiceError
from lab.hosts.roles import actors
from lab.isolation import ENTRY_DIR, RunIdentity, heed_interrupt
from lab.model import Flow, Native, Observation, Scenario
from lab.policy import flows
from lab.users import one_user

Reply = Callable[[dict[str, Any]], None]


class StandingError(RuntimeError):
    """What was asked for cannot be done; the message is for the person who asked."""


class StandingLab:
    """The testbed with one arm in place. `arm` is its name; every other arm of the scenario can be asked about."""

    def __init__(self, scenario: Scenario, arm: str, me: RunIdentity, testbed: ServedTestbed) -> None:
        self.scenario, self.arm, self.me, self.testbed = scenario, arm, me, testbed
        self.enforcers: dict[str, Guarded] = {}
        self.natives: dict[str, Native] = {}
        self.unsupported: dict[str, str] = {}
        self._places: dict[str, Enforcement] = {}
        for name in dict.fromkeys(("none", arm, *scenario.arms)):
            self._prepare(name)
        if arm in self.unsupported:
            raise StandingError(f"{arm} cannot run here: {self.unsupported[arm]}")
        self._install(arm)

    def status(self, _request: Mapping[str, Any], _tell: Reply) -> dict[str, Any]:
        topology = self.scenario.topology
        names = [topology.router, *topology.hosts]
        return {"id": self.me.run_id, "backend": self.scenario.backend, "scenario": self.scenario.name,
                "path": self.scenario.path, "arm": self.arm,
                "pids": {name: self.testbed.pid(name) for name in names},
                "cgroup": str(self.me.cgroup) if self.me.cgroup else None,
                "inside_cgroup": str(inside.parent) if (inside := self.testbed.cgroup_of(names[0], False)) else None,
                "several_users": self.me.several_users, "users": dict(topology.users)}

    def probe(self, request: Mapping[str, Any], tell: Reply) -> dict[str, Any]:
        """Try one flow `count` times, one after the other."""
        flow = self._flow(request["flow"])
        seen: list[Observation] = []
        for index in range(int(request.get("count", 1))):
            seen += probe(self.testbed.services, [flow], self.scenario.topology).observations
            tell({"progress": f"attempt {index + 1}"})
        return {"flow": str(flow), "arm": self.arm, "observations": [asdict(one) for one in seen]}

    def explain(self, request: Mapping[str, Any], tell: Reply) -> dict[str, Any]:
        """Intended, expected and observed; observed under the standing arm, or under each if `every`."""
        flow = self._flow(request["flow"])
        wanted = list(self.natives) if request.get("every") else [self.arm]
        seen = {}
        for name in wanted:
            tell({"progress": f"trying it under {name}"})
            with self._in_place(name):
                seen[name] = self._tried(flow)
        found = explain(flow, self.scenario, self.enforcers, self.natives, seen)
        return {**asdict(replace(found, unsupported=self.unsupported)), "flow": str(flow), "standing": self.arm}

    def agent(self, request: Mapping[str, Any], tell: Reply) -> dict[str, Any]:
        """What the agents of the standing arm say of themselves, or of a flow, nothing being tried; or another mode."""
        agents = Agents(self.scenario, self.enforcers[self.arm], self.testbed)
        what, host = from_request(request)
        tell({"progress": f"asking {host or 'every agent'}"})
        if what == "explain":
            return agents.explain(self._flow(request["flow"]), host)
        if what == "mode":
            return agents.mode([str(word) for word in request["words"]], host)
        return agents.tell(what, host)

    def close(self) -> None:
        self._places[self.arm].down()

    # --- parts ---

    def _flow(self, text: str) -> Flow:
        try:
            return flow_text.parse(text, self.scenario.topology)
        except flow_text.FlowTextError as err:
            raise StandingError(str(err)) from None

    def _tried(self, flow: Flow) -> Seen:
        topology, found = self.scenario.topology, []

        def attempt() -> None:
            found.extend(self.testbed.services.probe([to_attempt(flow, topology)], 1.5))

        rules = nft_trace.trace(self.testbed, flow, nft_trace.points(flow, topology), attempt)
        return Seen(observation(flow, found[-1]), rules)

    def _prepare(self, name: str) -> None:
        enforcer = registry.load(name)
        reason = testbeds.unsupported(self.scenario, enforcer)
        if reason:
            self.unsupported[name] = reason
            return
        topology = self.scenario.topology
        self.enforcers[name] = enforcer
        self.natives[name] = enforcer.compile(self.scenario.policy, topology)

    def _install(self, name: str) -> None:
        topology, enforcer = self.scenario.topology, self.enforcers[name]
        place = self.testbed.enforcement(name, lambda flow: enforcer.covers(flow, topology))
        place.install(self.natives[name], enforcer.render(self.natives[name], topology))
        self._places[name] = place

    @contextlib.contextmanager
    def _in_place(self, name: str) -> Iterator[None]:
        """`name` instead of the standing arm, which is back afterwards."""
        if name == self.arm:
            yield
            return
        self._places[self.arm].down()
        try:
            if name in self._places:
                self._places[name].up()
            else:
                self._install(name)
            try:
                yield
            finally:
                self._places[name].down()
        finally:
            self._places[self.arm].up()


def serve(scenario: Scenario, arm: str, me: RunIdentity, tell: Reply, engine: Engine | None = None) -> int:
    """Stand the lab up, say so by `tell`, and answer until `down` or a signal. Exit status as of `labctl up`."""
    if not me.several_users:
        scenario = replace(scenario, topology=one_user(scenario.topology))
    scenario = testbeds.with_contents(scenario, build())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(ENTRY_DIR / "control.sock"))
        (ENTRY_DIR / "control.sock").chmod(0o600)
        tell({"progress": f"standing up {len(scenario.topology.hosts)} hosts"})
        who = actors(scenario.topology, flows(scenario))
        try:
            with testbeds.up(scenario, _arms(scenario, arm), build(), me, who, engine) as bed:
                if arm != "none":
                    tell({"progress": f"putting {arm} in place"})
                lab = StandingLab(scenario, arm, me, bed)
                (ENTRY_DIR / "lab.json").write_text(json.dumps({
                    "arm": arm, "hosts": len(scenario.topology.hosts), "names": list(scenario.topology.hosts)}))
                heed_interrupt()
                listener.listen(16)
                tell({"ready": me.run_id})
                with contextlib.suppress(KeyboardInterrupt):
                    _answer(listener, lab)
                lab.close()
        except (LabDownError, DeployError, StandingError, EnforcerError, ServiceError, OSError) as err:
            with contextlib.suppress(OSError):  # whoever asked for the lab may be gone
                tell({"error": f"labctl: {err}"})
            return 3
    return 0


def _arms(scenario: Scenario, arm: str) -> list[Guarded]:
    """Every arm that may be put in place while the lab stands."""
    return [registry.load(name) for name in dict.fromkeys((arm, *scenario.arms))]


def _answer(listener: socket.socket, lab: StandingLab) -> None:
    """One request a connection, one after the other, until `down`."""
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError, ValueError):
            if _peer(connection) != os.geteuid():
                continue
            if not _one(connection, lab):
                return


def _one(connection: socket.socket, lab: StandingLab) -> bool:
    """Answer one request; False if it was the last."""
    with connection.makefile("rwb") as stream:
        def reply(message: dict[str, Any]) -> None:
            stream.write(json.dumps(message, default=str).encode() + b"\n")
            stream.flush()

        request = json.loads(stream.readline(65536))
        verb = request.get("verb")
        if verb == "down":
            reply({"ok": {}})
            return False
        verbs = {"status": lab.status, "probe": lab.probe, "explain": lab.explain, "agent": lab.agent}
        if verb not in verbs:
            reply({"error": f"labctl: the lab knows no '{verb}'; is it of another version?"})
            return True
        try:
            reply({"ok": verbs[verb](request, reply)})
        except (StandingError, EnforcerError, DeployError, ServiceError, AskError) as err:
            reply({"error": str(err)})
    return True


def _peer(connection: socket.socket) -> int:
    _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)
