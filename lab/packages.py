"""What has to be installed on the machine, and the Debian package that brings each."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.hosts.build import built

_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Tool:
    """A command that the lab calls, its Debian package, what for, and how it tells its version ((): it does not)."""

    command: str
    package: str
    purpose: str
    version: tuple[str, ...] = ("--version",)


# Mininet itself looks for mnexec and ifconfig.
TOOLS = (
    Tool("ip", "iproute2", "links and routes", ("-V",)),
    Tool("tc", "iproute2", "queueing disciplines and switch-side programs", ("-V",)),
    Tool("nft", "nftables", "packet filters"),
    Tool("mnexec", "mininet", "Mininet's helper", ()),
    Tool("ifconfig", "net-tools", "asked for by Mininet"),
    Tool("iperf3", "iperf3", "bulk throughput"),
    Tool("tar", "tar", "unpacks what an arm places"),
    Tool("gcc", "gcc", "compiles the built-in service"),
)
_HEADERS = {"/usr/include/stdio.h": "libc6-dev", "/usr/include/linux/if.h": "linux-libc-dev"}


@dataclass(frozen=True, slots=True)
class Found:
    """One tool of this machine: where it is (None: missing) and the first line that it tells of its version."""

    tool: Tool
    path: str | None
    version: str


def look() -> tuple[Found, ...]:
    """Every tool that the lab calls, with its version."""
    return tuple(_found(tool) for tool in TOOLS)


def missing_packages() -> tuple[str, ...]:
    """The Debian packages that a run lacks here, sorted; what compiles only where the service is not compiled yet."""
    absent = {tool.package for tool in TOOLS if shutil.which(tool.command, path=_PATH) is None}
    headers = {package for file, package in _HEADERS.items() if not Path(file).exists()}
    return tuple(sorted(absent - {"gcc"} if built() else absent | headers))


def apt_line(packages: Iterable[str]) -> str:
    """The one line to type, as root, that brings `packages`."""
    return f"apt-get install -y --no-install-recommends {' '.join(packages)}"


def version_of(argv: Sequence[str]) -> str:
    """The first line that a tool prints of its version, or why it printed none."""
    try:
        done = subprocess.run(list(argv), capture_output=True, timeout=10, check=False)
    except OSError as err:
        return f"not found ({err.strerror})"
    lines = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    return lines[0].strip() if lines else f"status {done.returncode}"


def _found(tool: Tool) -> Found:
    path = shutil.which(tool.command, path=_PATH)
    return Found(tool, path, version_of((path, *tool.version)) if path and tool.version else path or "")
