"""What this machine was when the figures were taken: they mean nothing without it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lab.backends.mininet_lab import tool
from lab.backends.mininet_net import HOST_SYSCTLS, ROUTER_SYSCTLS

_PACKAGES = ("microseg-labctl", "locust", "ansible-core", "ansible-runner", "mininet", "numpy", "gevent")


def facts() -> dict[str, object]:
    """Kernel, processors, JIT, clock, tools and what the lab sets in every host. Strings, so that they never fail."""
    return {
        "kernel": platform.release(), "machine": platform.machine(), "python": platform.python_version(),
        "system": _os_release(), "cpus": os.cpu_count(), "cpu_model": _cpu_model(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_before": list(os.getloadavg()),
        "bpf_jit_enable": _read("/proc/sys/net/core/bpf_jit_enable"),
        "clocksource": _read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "conntrack_max": _read("/proc/sys/net/netfilter/nf_conntrack_max"),
        "tools": {"nft": tool(["/usr/sbin/nft", "--version"]), "iperf3": tool(["iperf3", "--version"]),
                  "ip": tool(["ip", "-V"]), "gcc": tool(["gcc", "--version"])},
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
