"""Two hosts that ask and one that answers, with agent-ebpf, and processes of our own on them that tests talk to."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from enforcers.agent.agent_ebpf import AgentEbpf, OnSilence
from lab.backends import mininet_lab
from lab.backends.mininet_lab import MininetTestbed
from lab.deploy.enforcement import AnsibleEnforcement
from lab.hosts.build import build
from lab.hosts.roles import actors
from lab.isolation import RunIdentity
from lab.model import Point, Policy
from lab.scenario import loads
from tests.e2e.ebpf_agent import agent_pid

TEXT = """
version: 1
name: pair
topology:
  segments: {lan: {v4: 10.10.0.0/24, v6: fd10::/64}}
  hosts:
    asks: {segment: lan, labels: {role: asks}}
    asks-too: {segment: lan, labels: {role: asks}}
    answers: {segment: lan, labels: {role: answers}}
policy:
  default: deny
  rules:
    - {name: taken away, allow: {from: {role: asks}, to: {role: answers}, service: 7000/tcp}}
    - {name: kept, allow: {from: {role: asks}, to: {role: answers}, service: 7001/tcp}}
"""
TAKEN, KEPT, DENIED = 7000, 7001, 7002
ENDPOINT = Path(__file__).with_name("kernel_endpoint.py").read_text()
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Process:
    """Python on a host, with the endpoint's functions; told things by lines, and telling them."""

    def __init__(self, me: RunIdentity, host: str, code: str) -> None:
        assert me.cgroup
        cgroup = me.cgroup / host
        netns = os.open(f"/proc/{(cgroup / 'cgroup.procs').read_text().split()[0]}/ns/net", os.O_RDONLY)

        def enter() -> None:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
            resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
            if _libc.setns(netns, _CLONE_NEWNET):
                os._exit(97)

        self._process = subprocess.Popen(["/usr/bin/python3", "-I", "-S", "-c", ENDPOINT, code], text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=enter)  # noqa: PLW1509
        os.close(netns)

    def tell(self, word: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, f"it ended with status {self._process.wait(90)}"
        return json.loads(line)

    def end(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(90)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Pair:
    """The hosts, standing, with the agent in force; `silent`: what each does when its agent is silent."""

    def __init__(self, me: RunIdentity, testbed: MininetTestbed, silent: dict[str, OnSilence]) -> None:
        scenario = loads(TEXT, "pair.yaml")
        self.me, self.testbed, self.topology, self.old = me, testbed, scenario.topology, scenario.policy
        self.new = replace(self.old, rules=self.old.rules[1:])
        self.arms = {name: AgentEbpf(on_silence=silent.get(name, "ignored")) for name in self.topology.hosts}
        self.place = AnsibleEnforcement(testbed, "agent-ebpf")
        natives = {name: arm.compile(self.old, self.topology) for name, arm in self.arms.items()}
        self.place.install(natives["answers"], {
            point: plan for name, arm in self.arms.items()
            for point, plan in arm.render(natives[name], self.topology).items() if point.host == name})
        self.address = str(self.topology.hosts["answers"].v4)

    def say(self, verb: str, host: str, *words: str) -> str:
        done = self.testbed.run(host, self.arms[host].ask(host, verb, *words), daemon=True)
        assert done.status == 0, f"{verb} on {host}: {done.stderr.decode()}"
        return done.stdout.decode()

    def status(self, host: str) -> dict[str, Any]:
        return dict(json.loads(self.say("status", host)))

    def put(self, host: str, policy: Policy) -> None:
        """Place another policy, not yet in force."""
        arm = self.arms[host]
        plan = arm.render(arm.compile(policy, self.topology), self.topology)[Point("host", host)]
        self.testbed.put(host, {path: data for path, data in plan.files.items() if not path.endswith((".pyz", ".o"))})

    @contextmanager
    def running(self, host: str, code: str) -> Iterator[Process]:
        process = Process(self.me, host, code)
        try:
            assert process.hear() == "ready"
            yield process
        finally:
            process.end()

    def kill(self) -> None:
        os.kill(agent_pid(self.me), signal.SIGKILL)


@contextmanager
def pair(me: RunIdentity, silent: dict[str, OnSilence] | None = None) -> Iterator[Pair]:
    topology = loads(TEXT, "pair.yaml").topology
    with mininet_lab.up(topology, build(), me.cgroup, actors(topology)) as testbed:
        standing = Pair(me, testbed, silent or {})
        try:
            yield standing
        finally:
            standing.place.down()


SERVE = f"""
import resource
sockets = [listen(port, backlog=4096) for port in ({TAKEN}, {KEPT}, {DENIED})]
say('ready')
poll, by_fd = select.epoll(), {{s.fileno(): s for s in (*sockets, sys.stdin)}}
for fd in by_fd: poll.register(fd, select.EPOLLIN)
while True:
    for fd, _ in poll.poll():
        s = by_fd[fd]
        if s is sys.stdin: sys.exit()
        if s in sockets:
            new, _ = s.accept()
            by_fd[new.fileno()] = new
            poll.register(new.fileno(), select.EPOLLIN)
            continue
        try:
            text = s.recv(65536)
            if text: s.sendall(text)
        except OSError:
            text = b""
        if not text:
            poll.unregister(fd)
            del by_fd[fd]
            s.close()
"""
