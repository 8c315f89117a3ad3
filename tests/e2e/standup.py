"""Standing up and taking down, stock Mininet and ours, timed alike. Runs inside the lab (see isolated.py).

Both stand 200 hosts on one bridge with an IPv4 and an IPv6 address each, in the run's own network namespace, and the
bridge is the same (no snooping, forwarding at once, no firewall hooks).

Up, stock: Mininet() and start(), addresses of IPv6 by each host's own shell (without duplicate detection), then one
datagram each way between each host and the next, in both families, by this process from within their namespaces: the
cheapest way there is, so the check weighs least on stock. Up, ours: `mininet_lab.up`, which has permanent neighbours of
every pair, a router and services besides, and checks by its services; `one` runs one service a host, `all` the three
that a scenario gets (process, stranger, observer).

Down, both: until the call has returned and the kernel has reclaimed every namespace. Two canaries one after the other
prove that (lab.backends.reclaim): the second comes in a later batch than all that died before the first.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import time
from pathlib import Path
from typing import Any

PORT = 4789


def scenario_text(hosts: int, segments: int) -> str:
    """`hosts` hosts in `segments` segments, one service each."""
    places = "".join(f"    s{i}: {{v4: 10.{20 + i}.0.0/16, v6: 'fd20:{i}::/64'}}\n" for i in range(segments))
    members = "".join(f"    h{i}: {{segment: s{i}, count: {hosts // segments}, labels: {{role: peer}}, runs: [svc]}}\n"
                      for i in range(segments))
    return (f"version: 1\nname: standup\ntopology:\n  segments:\n{places}  hosts:\n{members}"
            "processes:\n  svc: {exe: /opt/svc, listens: [7000/tcp, 7000/udp]}\n"
            "policy:\n  default: deny\n  rules:\n"
            "    - {name: all, allow: {from: {role: peer}, to: {role: peer}, service: 7000/tcp}}\n"
            "arms: [none]\n")


def topology_of(hosts: int, segments: int) -> Any:
    from lab.scenario import loads

    return loads(scenario_text(hosts, segments), "standup.yaml").topology


def ratio(slow: list[float], fast: list[float]) -> tuple[float, float, float]:
    """How many times faster, with its 95 % interval: the mean of the rounds' log-ratios, Student's t."""
    import numpy as np
    from scipy import stats

    logs = np.log(np.asarray(slow) / np.asarray(fast))
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    return tuple(float(np.exp(value)) for value in (logs.mean(), logs.mean() - half, logs.mean() + half))


def in_turn(me: Any, argument: dict[str, Any]) -> dict[str, Any]:
    """`rounds` times stock and each of ours in an order that turns; {who: [[up_s, down_s], ...]}."""
    from lab.hosts.build import build

    build()
    sides = {"stock": lambda: stock(argument["hosts"]), "one": lambda: ours(me, argument["hosts"], True),
             "all": lambda: ours(me, argument["hosts"], False)}
    found: dict[str, Any] = {name: [] for name in argument["sides"]}
    for turn in range(argument["rounds"]):
        names = list(found)
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            found[name].append(sides[name]())
    return found


def ours(me: Any, hosts: int, one: bool) -> list[float]:
    """Seconds up and down."""
    from lab.backends import mininet_lab
    from lab.hosts.build import build
    from lab.hosts.roles import actors
    from lab.model import STRANGER

    topology = topology_of(hosts, 1)
    who = [actor for actor in actors(topology) if not one or actor.process == STRANGER]
    began = time.monotonic()
    lab = mininet_lab.up(topology, build(), _cgroup(me), who)
    lab.__enter__()
    up_s = time.monotonic() - began
    began = time.monotonic()
    lab.__exit__(None, None, None)
    _reclaimed()
    return [up_s, time.monotonic() - began]


def stock(hosts: int) -> list[float]:
    """Seconds up and down."""
    from mininet.net import Mininet
    from mininet.node import Host
    from mininet.topo import SingleSwitchTopo

    _quiet_bridges()
    began = time.monotonic()
    net = Mininet(topo=SingleSwitchTopo(hosts), host=Host, switch=stock_bridge(), controller=None, autoSetMacs=True,
                  ipBase="10.20.0.0/16")
    net.start()
    for number, host in enumerate(net.hosts, 1):
        host.cmd(f"ip -6 addr add {_v6(number)}/64 dev {host.defaultIntf()} nodad")
    _exchange([(host.pid, host.IP(), _v6(number)) for number, host in enumerate(net.hosts, 1)])
    up_s = time.monotonic() - began
    began = time.monotonic()
    net.stop()
    _reclaimed()
    return [up_s, time.monotonic() - began]


def stock_bridge() -> Any:
    """Mininet's LinuxBridge; where there is no brctl, `ip` in its place, command for command."""
    from mininet.nodelib import LinuxBridge

    with_brctl = shutil.which("brctl") is not None

    class Bridge(LinuxBridge):  # type: ignore[misc]
        def start(self, controllers: object) -> None:
            if with_brctl:
                super().start(controllers)
            else:
                self.cmd("ip link add", self, "type bridge")
                for port in self.intfList():
                    if self.name in port.name:
                        self.cmd("ip link set", port, "master", self)
            self.cmd("ip link set", self, "type bridge mcast_snooping 0 forward_delay 0")
            self.cmd("ip link set", self, "up")

        def stop(self, deleteIntfs: bool = True) -> None:
            if with_brctl:
                super().stop(deleteIntfs)
            else:
                self.cmd("ip link del", self)
                super(LinuxBridge, self).stop(deleteIntfs)

        @classmethod
        def setup(cls) -> None:
            """Nothing to check: what is missing is replaced."""

    return Bridge


def _v6(number: int) -> str:
    return f"fd20:0::{number + 1:x}"


def _quiet_bridges() -> None:
    """What `mininet_net` sets for its bridges, for stock's too."""
    from lab.backends.mininet_net import HOST_SYSCTLS

    values = {"net/ipv6/conf/default/disable_ipv6": "1",
              **{key: value for key, value in HOST_SYSCTLS.items() if "bridge" in key}}
    for key, value in values.items():
        path = Path("/proc/sys", key)
        if path.exists():
            path.write_text(value)


def _exchange(hosts: list[tuple[int, str, str]], timeout_s: float = 60.0) -> None:
    """Each host sends the next a datagram and gets it back, in both families; (pid, IPv4, IPv6) a host."""
    from lab.backends.mininet_net import netns

    sockets, poll = {}, select.epoll()
    for number, (pid, *addresses) in enumerate(hosts):
        with netns(pid):
            for kind, address in zip((socket.AF_INET, socket.AF_INET6), addresses, strict=True):
                opened = socket.socket(kind, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                opened.bind((address, PORT))
                sockets[opened.fileno()] = (number, opened)
                poll.register(opened, select.EPOLLIN)
    mine = {(number, opened.family): opened for number, opened in sockets.values()}
    target = {(n, kind): (hosts[(n + 1) % len(hosts)][place], PORT)
              for n in range(len(hosts)) for place, kind in ((1, socket.AF_INET), (2, socket.AF_INET6))}
    waiting, deadline = set(mine), time.monotonic() + timeout_s
    while waiting:
        if time.monotonic() > deadline:
            raise TimeoutError(f"stock: {len(waiting)} exchanges never came about")
        for key in waiting:
            mine[key].sendto(b"ask", target[key])
        until = time.monotonic() + 0.2  # then those that were lost are sent again
        while waiting and (left := until - time.monotonic()) > 0:
            for fd, _ in poll.poll(left):
                number, opened = sockets[fd]
                data, peer = opened.recvfrom(16)
                if data == b"ask":
                    opened.sendto(b"got", peer)
                else:
                    waiting.discard((number, opened.family))
    for _, opened in sockets.values():
        opened.close()
    poll.close()


def _reclaimed() -> None:
    from lab.backends import reclaim

    for _ in range(2):
        assert reclaim.await_reclaimed((), 60.0)


def _cgroup(me: Any) -> Path | None:
    """A cgroup of its own for each lab of the run."""
    if me.cgroup is None:
        return None
    made = Path(me.cgroup, f"lab{time.monotonic_ns()}")
    made.mkdir()
    return made


# --- a thousand ------------------------------------------------------------------------------------


def thousand(me: Any, argument: dict[str, Any]) -> dict[str, Any]:
    """`hosts` hosts in `segments` segments with a service each: up, a seeded sample of pairs probed, some denied."""
    import random
    from collections import Counter

    from bench.instruments.probe import probe
    from lab.backends import mininet_lab
    from lab.hosts.build import build
    from lab.hosts.roles import actors
    from lab.model import Flow

    topology = topology_of(argument["hosts"], argument["segments"])
    labhost = build()
    before = _available()
    began = time.monotonic()
    with mininet_lab.up(topology, labhost, _cgroup(me), actors(topology)) as testbed:
        up_s = time.monotonic() - began
        taken, (processes, pss) = before - _available(), _processes()
        rng, names = random.Random(argument["seed"]), list(topology.hosts)
        pairs = sorted({tuple(rng.sample(names, 2)) for _ in range(argument["pairs"])})
        rng.shuffle(pairs)
        planted = set(pairs[:len(pairs) // 10])
        for source, target in planted:
            _deny(testbed, target, topology.hosts[source].v4)
        flows = [Flow(a, "svc", topology.processes["svc"].user, b, "svc", "tcp", 7000, 4) for a, b in pairs]
        began = time.monotonic()
        seen = probe(testbed.services, flows, topology).observations
        probed_s = time.monotonic() - began
        began = time.monotonic()
    outcomes = {name: Counter(str(o.outcome) for o, pair in zip(seen, pairs, strict=True)
                              if (pair in planted) == (name == "planted")) for name in ("planted", "free")}
    return {"up_s": up_s, "down_s": time.monotonic() - began, "attempts": len(pairs), "probed_s": probed_s,
            "outcomes": outcomes, "planted": len(planted), "processes": processes, "pss_bytes": pss,
            "machine_bytes": taken}


def _deny(testbed: Any, target: str, source: str) -> None:
    rules = ("table ip planted {\n chain c {\n type filter hook input priority 0;\n"
             f" ip saddr {source} tcp dport 7000 drop\n }}\n}}\n")
    done = testbed.run(target, ["nft", "-f", "-"], input=rules.encode())
    assert done.status == 0, done.stderr


def _available() -> int:
    line = next(text for text in Path("/proc/meminfo").read_text().splitlines() if text.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


def _processes() -> tuple[int, int]:
    """How many processes the run has but for this one, and their proportional memory."""
    from lab.backends.served import pss

    pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return len(pids), sum(map(pss, pids))


# --- whether down means reclaimed ------------------------------------------------------------------


def counted(_me: Any, argument: dict[str, Any]) -> dict[str, Any]:
    """How many namespaces the kernel counts before up and when up, and whether as `close` returns there are more than
    `spare` above the first; `blind`: it does not wait.

    The caller has put this run into a user namespace, whose limit of network namespaces tells their exact number: one
    more can be made only if there are fewer than the limit. The kernel takes one off at the end of its clean-up.
    """
    from lab.backends import mininet_lab, reclaim
    from lab.hosts.build import build
    from lab.hosts.roles import actors
    from lab.users import one_user

    topology = one_user(topology_of(argument["hosts"], 1))
    if argument["blind"]:
        reclaim.await_reclaimed = lambda *_: True  # type: ignore[assignment]
    before = _namespaces(0)
    with mininet_lab.up(topology, build(), None, actors(topology)):
        up = _namespaces(before)
    return {"before": before, "up": up, "after_more": _more_than(before + argument["spare"])}


def _namespaces(at_least: int) -> int:
    """Counted upwards: a try that the limit refuses makes nothing, and the one that it allows is the last."""
    count = at_least
    while _more_than(count):
        count += 1
    return count


def _more_than(count: int) -> bool:
    import ctypes

    Path("/proc/sys/user/max_net_namespaces").write_text(str(count + 1))
    libc = ctypes.CDLL(None)
    if (pid := os.fork()) == 0:
        os._exit(1 if libc.unshare(0x40000000) else 0)  # CLONE_NEWNET
    refused = os.waitpid(pid, 0)[1] != 0
    Path("/proc/sys/user/max_net_namespaces").write_text("4096")
    return refused
