"""Two or more bare hosts for tests of the built-in service: `labhost init` each, on one bridge, nothing else."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lab.hosts import init_client
from lab.hosts.build import build
from lab.hosts.control import Actor, Fleet

BUILD_DIR = Path(__file__).parents[2] / "lab" / "hosts" / "_build"
V4, V6 = "10.0.0.{}", "fd00::{}"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Net:
    """`hosts` hosts named h1, h2, ... at 10.0.0.N and fd00::N, ready for services; `fleet` commands them."""

    def __init__(self, hosts: int, stack: contextlib.ExitStack) -> None:
        self.labhost = build(BUILD_DIR)
        self.stack = stack
        self.names = [f"h{i + 1}" for i in range(hosts)]
        self.inits: dict[str, subprocess.Popen[bytes]] = {}
        self.pids: dict[str, int] = {}
        self.fleet = stack.enter_context(Fleet("/run/labctl/control.sock"))
        self.handles: dict[Actor, init_client.Handle] = {}
        ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        ip("link", "set", "br0", "up")
        for number, name in enumerate(self.names, 1):
            self._host(number, name)

    def socket(self, host: str) -> str:
        return f"/run/labctl/{host}.sock"

    def _host(self, number: int, name: str) -> None:
        argv = [str(self.labhost), "init", "--socket", self.socket(name), "--hostname", name]
        init = subprocess.Popen(argv, stdout=subprocess.PIPE)
        self.stack.callback(init.wait)
        self.stack.callback(init.kill)
        assert init.stdout is not None
        word, pid = init.stdout.readline().split()
        assert word == b"ready"
        self.inits[name], self.pids[name] = init, int(pid)
        ip("link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns", pid.decode())
        ip("link", "set", f"p{number}", "master", "br0", "up")
        self.ok(name, "ip", "addr", "add", f"{V4.format(number)}/16", "dev", "eth0")
        self.ok(name, "ip", "addr", "add", f"{V6.format(number)}/64", "dev", "eth0", "nodad")
        self.ok(name, "ip", "link", "set", "eth0", "up")
        self.ok(name, "sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")

    def ok(self, host: str, *argv: str, input: bytes = b"") -> bytes:
        done = init_client.run(self.socket(host), list(argv), input)
        assert done.status == 0, (argv, done)
        return done.stdout

    def nft(self, host: str, rules: str) -> None:
        self.ok(host, "nft", "-f", "-", input=rules.encode())

    def place(self, host: str, path: str) -> None:
        target = Path(f"/proc/{self.pids[host]}/root{path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.labhost.read_bytes())
        target.chmod(0o755)

    def serve(self, host: str, process: str, *extra: str, uid: int = 20001, cgroup: Path | None = None) -> Actor:
        actor = Actor(host, process, "user" if uid else "root")
        path = f"/opt/{process.strip('()')}"
        self.place(host, path)
        argv = [path, "serve", "--control", "/run/labctl/control.sock", "--host", host, "--process", process,
                "--user", actor.user, "--uid", str(uid), *extra]
        self.handles[actor] = init_client.spawn(self.socket(host), argv, cgroup=cgroup)
        return actor

    def up(self, *actors: Actor) -> None:
        self.fleet.await_actors(actors, 10)


@contextlib.contextmanager
def net(hosts: int = 2) -> Iterator[Net]:
    os.environ["PATH"] = f"/usr/sbin:/sbin:{os.environ['PATH']}"
    with contextlib.ExitStack() as stack:
        yield Net(hosts, stack)
