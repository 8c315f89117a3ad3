"""Running the small programs of `host_client.py` and `host_tap.py` on hosts, and borrowing a service's port."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.instruments import as_declared
from bench.instruments.traffic import interpreter
from lab.backends.base import HostProcess, Testbed
from lab.hosts.attempts import Actor
from lab.model import Flow

_PLACE = "/run/host/load"
CLIENT, TAP = f"{_PLACE}/client.py", f"{_PLACE}/tap.py"
PYTHON = f"{_PLACE}/python"
_ENVIRONMENT = {"PYTHONHOME": sys.base_prefix, "PYTHONDONTWRITEBYTECODE": "1"}


class ProgramError(RuntimeError):
    """A program on a host said nothing, or something else; the message names it and the host."""


def place(testbed: Testbed, hosts: Sequence[str]) -> None:
    """Put the programs and an interpreter that every user may execute on `hosts`. Once a lab is enough."""
    here = Path(__file__)
    files = {CLIENT: here.with_name("host_client.py").read_bytes(), TAP: here.with_name("host_tap.py").read_bytes(),
             PYTHON: interpreter().read_bytes()}
    for host in dict.fromkeys(hosts):
        testbed.put(host, files)


def start(testbed: Testbed, host: str, program: str, *words: str, process: str | None = None) -> HostProcess:
    """Start one of the placed programs, as a declared process (its path and its user) or as root."""
    python = as_declared.placed(testbed, host, process, interpreter()) if process else PYTHON
    return testbed.spawn(host, [python, "-S", program, *words], process=process, env=_ENVIRONMENT)


def client(testbed: Testbed, host: str, *words: str, process: str) -> dict[str, Any]:
    """What `host_client.py` says when it is run to its end. Raises ProgramError."""
    program = start(testbed, host, CLIENT, *words, process=process)
    try:
        return said(program, host, words[0])
    finally:
        program.kill()


def said(program: HostProcess, host: str, what: str) -> dict[str, Any]:
    """The next line of a program as JSON. Raises ProgramError."""
    line = program.stdout.readline()
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        raise ProgramError(f"load: {what} on {host} ended without a result") from None
    return found


@contextlib.contextmanager
def lent_port(testbed: Testbed, flow: Flow) -> Iterator[None]:
    """The target's service gives up the flow's port and takes it back, so that the policy applies to who borrows it."""
    user = testbed.topology.processes[flow.target_process].user
    server = Actor(flow.target, flow.target_process, user)
    testbed.services.request(server, "unlisten", flow.proto, str(flow.port))
    try:
        yield
    finally:
        testbed.services.request(server, "listen", flow.proto, str(flow.port))
