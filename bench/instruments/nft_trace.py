"""Which nftables rules the packets of one flow meet, asked of the kernel itself (`nft monitor trace`).

A table of our own marks the flow for tracing in every hook it can pass first; what is reported are the rules of all
other tables. The trace costs time, so it is never on while a figure is taken.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence

from lab.backends.base import HostProcess, Testbed
from lab.model import Flow, Topology

_TABLE = "labctl_trace"
_WAIT_S = 3.0
_RULE = re.compile(r"trace id (?P<id>\S+) (?P<family>\S+) (?P<table>\S+) (?P<chain>\S+) "
                   r"(?:rule (?P<rule>.*) )?\(?(?:verdict|policy) (?P<verdict>\w+)")
_CANARY = "nc_canary"


class _Monitor:
    """`nft monitor trace` on one host, read by a thread of its own until it ends."""

    def __init__(self, process: HostProcess) -> None:
        self.process, self.lines = process, list[str]()
        self._news = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # it was ended
            for raw in self.process.stdout:
                with self._news:
                    self.lines.append(raw.decode(errors="replace").strip())
                    self._news.notify_all()

    def await_text(self, text: str, timeout_s: float) -> bool:
        with self._news:
            return self._news.wait_for(lambda: any(text in line for line in self.lines), timeout_s)


def trace(testbed: Testbed, flow: Flow, hosts: Sequence[str], attempt: Callable[[], object]) -> tuple[str, ...]:
    """Carry out `attempt` with the flow traced on `hosts`; a line for every rule, or policy of a chain, that decided.

    Empty where no nftables table but ours saw the flow.
    """
    source, target = (testbed.topology.hosts[name].address(flow.family) for name in (flow.source, flow.target))
    marks = table(flow, source, target)
    traced = [host for host in hosts if testbed.run(host, ["nft", "-f", "-"], input=marks.encode()).status == 0]
    with contextlib.ExitStack() as stack:
        for host in traced:
            stack.callback(testbed.run, host, ["nft", "delete", "table", "inet", _TABLE])
        monitors = {host: stack.enter_context(_monitoring(testbed, host)) for host in traced}
        for host, monitor in monitors.items():  # it is listening when it has told of a packet
            _until_told(testbed, host, monitor, 9)
        attempt()
        for host, monitor in monitors.items():  # events come in order, so this one is behind those of the flow
            _until_told(testbed, host, monitor, 10)
        return tuple(line for host, monitor in monitors.items() for line in decided(host, tuple(monitor.lines)))


def table(flow: Flow, source: str, target: str) -> str:
    """The table that marks the flow, there and back, and canaries to ports 9 and 10 of the host itself."""
    ip, proto = ("ip", flow.proto) if flow.family == 4 else ("ip6", "ipv6-icmp" if flow.proto == "icmp" else flow.proto)
    there, back = (f"th dport {flow.port}", f"th sport {flow.port}") if flow.proto != "icmp" else ("", "")
    rules = [f"{ip} saddr {source} {ip} daddr {target} meta l4proto {proto} {there} meta nftrace set 1",
             f"{ip} saddr {target} {ip} daddr {source} meta l4proto {proto} {back} meta nftrace set 1",
             *(f'ip daddr 127.0.0.1 udp dport {port} meta nftrace set 1 comment "{_CANARY}{port}"' for port in (9, 10))]
    lines = [f"table inet {_TABLE} {{"]
    for hook in ("prerouting", "output"):
        lines += [f"chain {hook} {{", f"type filter hook {hook} priority -400;", *rules, "}"]
    return "\n".join([*lines, "}", ""])


def decided(host: str, lines: Sequence[str]) -> Iterator[str]:
    """Of a monitor's lines those that tell of a decision on the flow outside of our own table, once each."""
    found = [(line, m) for line in lines if (m := _RULE.match(line))]
    canaries = {m["id"] for line, m in found if _CANARY in line}
    told = dict.fromkeys(
        f"{host}: {m['family']} {m['table']} {m['chain']}: {m['rule'] or 'policy'} → {m['verdict']}"
        for _line, m in found
        if m["table"] != _TABLE and m["id"] not in canaries and m["verdict"] not in ("continue", "jump", "goto"))
    yield from told


@contextlib.contextmanager
def _monitoring(testbed: Testbed, host: str) -> Iterator[_Monitor]:
    process = testbed.spawn(host, ["nft", "monitor", "trace"])
    try:
        yield _Monitor(process)
    finally:
        process.kill()


def _until_told(testbed: Testbed, host: str, monitor: _Monitor, port: int) -> None:
    for _ in range(15):
        testbed.run(host, ["bash", "-c", f"echo > /dev/udp/127.0.0.1/{port}"])
        if monitor.await_text(f"{_CANARY}{port}", _WAIT_S / 15):
            return


def points(flow: Flow, topology: Topology) -> tuple[str, ...]:
    """The hosts that the flow passes, in its order: its ends, and the router between segments."""
    source, target = topology.hosts[flow.source], topology.hosts[flow.target]
    between = (topology.router,) if source.segment != target.segment else ()
    return tuple(dict.fromkeys((source.name, *between, target.name)))
