"""What this machine was when the figures were taken: they mean nothing without it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lab import conditions
from lab.backends.mininet_net import HOST_SYSCTLS, ROUTER_SYSCTLS
from lab.packages import version_of

_PACKAGES = ("microseg-labctl", "locust", "ansible-core", "ansible-runner", "mininet", "numpy", "gevent")


def facts() -> dict[str, object]:
    """Kernel, processors, the conditions that spoil figures, tools and what the lab sets in every host."""
    return {
        "kernel": platform.release(), "machine": platform.machine(), "python": platform.python_version(),
        "system": _os_release(), "cpu_model": _cpu_model(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        **conditions.facts(),
        "tools": {"nft": version_of(["/usr/sbin/nft", "--version"]), "iperf3": version_of(["iperf3", "--version"]),
                  "ip": version_of(["ip", "-V"]), "gcc": version_of(["gcc", "--version"])},
        "packages": {name: _version(name) for name in _PACKAGES},
        "host_sysctls": HOST_SYSCTLS, "router_sysctls": ROUTER_SYSCTLS,
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"


def _os_release() -> str:
    for line in _read("/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return "unknown"


def _cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
