"""What this machine can do, tried, not assumed. Each probe runs inside the run's private namespaces."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable

from lab.isolation import cgroup2_root, tool_env
from lab.model import Feature

_NETLINK_SOCK_DIAG, _NETLINK_NETFILTER = 4, 12


def missing(features: tuple[Feature, ...]) -> str | None:
    """Why an arm with these needs cannot run here, in one line, or None if it can."""
    reasons = [f"{feature.name}: {problem} ({feature.why})" for feature in features
               if (problem := _probe(feature.name))]
    return "; ".join(reasons) or None


def _probe(name: str) -> str | None:
    check = _CHECKS.get(name)
    return check() if check else f"labctl does not know how to look for '{name}'"


def _nftables() -> str | None:
    rules = "add table inet labctl_probe\ndelete table inet labctl_probe\n"
    try:
        done = subprocess.run(["nft", "-f", "-"], input=rules.encode(), capture_output=True, env=tool_env(),
                              timeout=10, check=False)
    except FileNotFoundError:
        return "nft is not installed; apt-get install -y nftables"
    said = done.stderr.decode(errors="replace").strip()[:120]
    return None if done.returncode == 0 else f"nft refused a table: {said}"


def _nftables_rule(expression: str) -> Callable[[], str | None]:
    def check() -> str | None:
        rules = ("add table inet labctl_probe\nadd chain inet labctl_probe c\n"
                 f"add rule inet labctl_probe c {expression}\ndelete table inet labctl_probe\n")
        problem = _nftables()
        if problem:
            return problem
        done = subprocess.run(["nft", "-f", "-"], input=rules.encode(), capture_output=True, env=tool_env(),
                              timeout=10, check=False)
        return None if done.returncode == 0 else f"this kernel's nftables has no '{expression.split(maxsplit=1)[0]}'"
    return check


def _netlink(protocol: int, groups: int) -> Callable[[], str | None]:
    def check() -> str | None:
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as s:
                s.bind((0, groups))
        except OSError as err:
            return f"netlink refuses it ({os.strerror(err.errno or 0)})"
        return None
    return check


def _python3() -> str | None:
    return None if os.access("/usr/bin/python3", os.X_OK) else "/usr/bin/python3 is missing; apt-get install -y python3"


def _iperf3() -> str | None:
    return None if shutil.which("iperf3") else "iperf3 is not installed; apt-get install -y iperf3"


def _cgroup2() -> str | None:
    return None if cgroup2_root() else "no writable cgroup v2 is mounted"


def _conntrack() -> str | None:
    return _nftables_rule("ct state established accept")() or _netlink(_NETLINK_NETFILTER, 0b101)()


def _nflog() -> str | None:
    return _nftables_rule("log group 7")() or _netlink(_NETLINK_NETFILTER, 0)()


_CHECKS: dict[str, Callable[[], str | None]] = {
    "nftables": _nftables,
    "conntrack-events": _conntrack,
    "nflog": _nflog,
    "sock-diag": _netlink(_NETLINK_SOCK_DIAG, 0),
    "python3": _python3,
    "iperf3": _iperf3,
    "cgroup2": _cgroup2,
}
