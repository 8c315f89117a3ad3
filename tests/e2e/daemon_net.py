"""Two hosts and a router between them, each in namespaces of its own, for the daemon's tests. Real packets, no lab."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.model import Host, Point, PointPlan, Policy, Process, Segment, Service, Topology

ENDPOINT = Path(__file__).with_name("daemon_endpoint.py").read_text()
SEGMENTS = {
    "left": Segment("left", "10.9.1.0/24", "fd09:1::/64", "10.9.1.254", "fd09:1::fe"),
    "right": Segment("right", "10.9.2.0/24", "fd09:2::/64", "10.9.2.254", "fd09:2::fe"),
}
USERS = {"asker": 20001, "server": 20002, "nobody": 65534}
_PYTHON = "/usr/bin/python3"


def topology(left_agent: bool = True) -> Topology:
    """`a` on the left runs `asker`; `b` on the right runs `server`."""
    hosts = {
        "a": Host("a", "left", "10.9.1.1", "fd09:1::1", "02:00:00:00:00:01", {"role": "asks"}, ("asker",),
                  "possible" if left_agent else "impossible"),
        "b": Host("b", "right", "10.9.2.1", "fd09:2::1", "02:00:00:00:00:02", {"role": "serves"}, ("server",)),
    }
    processes = {
        "asker": Process("asker", "/run/bin/asker", "asker", 20001),
        "server": Process("server", "/run/bin/server", "server", 20002,
                          (Service("tcp", 80, 80), Service("udp", 53, 54))),
    }
    return Topology(SEGMENTS, hosts, processes, USERS)


@dataclass
class Node:
    """One set of namespaces, held by a process that ends with its standard input."""

    name: str
    holder: subprocess.Popen[bytes]
    pid: int

    def argv(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "-p", "-r", "--", *argv]

    def run(self, *argv: str, input: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(self.argv(argv), input=input, capture_output=True, timeout=90, check=False)
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {argv}: {done.returncode}: {done.stderr.decode()}")
        return done

    def place(self, plan: PointPlan) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for path, content in plan.files.items():
                info = tarfile.TarInfo(path.lstrip("/"))
                info.size, info.mode = len(content), 0o700
                tar.addfile(info, io.BytesIO(content))
        self.run("tar", "-xpf", "-", "-C", "/", input=buffer.getvalue())

    def start(self, plan: PointPlan) -> None:
        self.place(plan)
        for command in plan.up:
            self.run(*command)
        self.run(*plan.ready)

    def records(self, plan: PointPlan) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.run(*plan.collect).stdout.splitlines()]

    @contextlib.contextmanager
    def endpoint(self, binary: str, uid: int, *arguments: str) -> Iterator[dict[str, object]]:
        """Run the endpoint program as `binary` and `uid`; yields what it says first, ends it afterwards."""
        with self.conversation(binary, uid, *arguments) as process:
            assert process.stdout
            yield json.loads(process.stdout.readline())

    @contextlib.contextmanager
    def conversation(self, binary: str, uid: int, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """The endpoint program itself: `again` makes it repeat its exchange."""
        process = subprocess.Popen(
            self.argv([f"/run/bin/{binary}", "-c", ENDPOINT, str(uid), *arguments]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONHOME": "/usr"})
        assert process.stdin and process.stdout
        try:
            yield process
        finally:
            process.stdin.close()
            process.wait(90)
            process.stdout.close()

    def ask(self, *arguments: str, binary: str = "asker", uid: int = 20001) -> str:
        with self.endpoint(binary, uid, "ask", *arguments) as said:
            return str(said["outcome"])


def again(process: subprocess.Popen[bytes]) -> str:
    """One more exchange on the socket that the endpoint has open; how it ended."""
    assert process.stdin and process.stdout
    process.stdin.write(b"again\n")
    process.stdin.flush()
    return str(json.loads(process.stdout.readline())["outcome"])


@contextlib.contextmanager
def network() -> Iterator[dict[str, Node]]:
    """Nodes a, b and router, wired a - router - b in both families, forwarding on."""
    with contextlib.ExitStack() as stack:
        nodes = {name: _node(name, stack) for name in ("a", "b", "router")}
        for name, segment, network_number in (("a", "left", 1), ("b", "right", 2)):
            _wire(nodes[name], nodes["router"], network_number, SEGMENTS[segment])
        nodes["router"].run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward; "
                            "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
        yield nodes


def _node(name: str, stack: contextlib.ExitStack) -> Node:
    script = ("mount -t tmpfs none /run && mkdir -p /run/bin && cp /usr/bin/python3 /run/bin/asker && "
              "cp /usr/bin/python3 /run/bin/server && ip link set lo up && "
              "echo '0 65535' > /proc/sys/net/ipv4/ping_group_range && "
              "echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start && "
              "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad && echo ready && exec cat")
    holder = subprocess.Popen(["unshare", "-nmpf", "--mount-proc", "--kill-child", "sh", "-c", script],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin and holder.stdout
    stack.callback(holder.wait, 10)
    stack.callback(holder.stdin.close)
    assert holder.stdout.readline() == b"ready\n"
    child = int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()[0])
    return Node(name, holder, child)


def _wire(host: Node, router: Node, number: int, segment: Segment) -> None:
    ip = ["nsenter", "-t", str(host.pid), "-n", "ip"]  # pids in `netns PID` are those outside
    subprocess.run([*ip, "link", "add", "eth0", "type", "veth", "peer", "name", f"to-{host.name}",
                    "netns", str(router.pid)], check=True)
    for node, device, end4, end6 in ((host, "eth0", 1, "1"), (router, f"to-{host.name}", 254, "fe")):
        node.run("ip", "link", "set", device, "up")
        node.run("ip", "addr", "add", f"10.9.{number}.{end4}/24", "dev", device)
        node.run("ip", "addr", "add", f"fd09:{number}::{end6}/64", "dev", device, "nodad")
    host.run("ip", "route", "add", "default", "via", segment.gateway4)
    host.run("ip", "-6", "route", "add", "default", "via", segment.gateway6)


def point(name: str) -> Point:
    return Point("router" if name == "router" else "host", name)


def policy(*rules: object, default: str = "deny") -> Policy:
    return Policy(default, tuple(rules))  # type: ignore[arg-type]
