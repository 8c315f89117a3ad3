"""A tool that runs as a declared process: at its path, so that an arm that tells processes apart takes it for that."""

from __future__ import annotations

import shutil
from pathlib import Path

from lab.backends.base import Testbed
from lab.isolation import tool_env


class ToolMissingError(OSError):
    """A tool that is to be run on a host is not installed; the message says how to get it."""


def placed(testbed: Testbed, host: str, process: str, tool: Path) -> str:
    """Put a copy of `tool` at the path of `process` on `host`; returns the path.

    A service that runs from that path goes on: its executable is its own file, whatever the name is given to now.
    """
    path = testbed.topology.processes[process].path
    testbed.put(host, {path: tool.read_bytes()})
    return path


def installed(tool: str, package: str) -> Path:
    """The executable of a tool of this machine. Raises ToolMissingError."""
    found = shutil.which(tool, path=tool_env()["PATH"])
    if found is None:
        raise ToolMissingError(f"{tool} is not installed; apt-get install -y {package}")
    return Path(found)
