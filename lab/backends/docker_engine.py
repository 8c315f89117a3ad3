"""The user's Docker engine: where it is, whether it answers, and a client of it that works inside a run's namespaces.

labctl shares files and sockets with its containers, so the engine has to be of this machine, at a unix socket.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.backends import docker_left
from lab.packages import apt_line

DEFAULT_SOCKET = "/var/run/docker.sock"


class EngineError(RuntimeError):
    """No engine that labctl can use; the message is one line and says what to do."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that answered. `path` is its socket; `inside` the same one where the run has its own /run."""

    path: str
    inside: str

    def client(self) -> Any:
        """The SDK's client. Its types are its own."""
        import docker

        return docker.DockerClient(base_url=f"unix://{self.inside}", timeout=120)


def socket_path() -> str:
    """The unix socket that DOCKER_HOST names, or the usual one. Raises EngineError for any other kind of address."""
    address = os.environ.get("DOCKER_HOST") or f"unix://{DEFAULT_SOCKET}"
    if not address.startswith("unix://"):
        raise EngineError(f"docker: DOCKER_HOST is {address}, and containers of a lab have to be on this machine; "
                          f"set it to unix://{DEFAULT_SOCKET}, or unset it")
    return address.removeprefix("unix://")


def reach() -> Engine:
    """The engine, which answers now. Call it before the run's namespaces: they hide /run. Raises EngineError."""
    path = socket_path()
    if why := lack(path):
        raise EngineError(f"docker: {why[0]}; {why[1]}")
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)  # kept: it names the socket whatever is mounted over its path
    return Engine(str(Path(path).resolve()), f"/proc/self/fd/{fd}")


def lack(path: str) -> tuple[str, str] | None:
    """Why no engine can be used at `path`, and what mends it; None if it answers."""
    try:
        status, _body = docker_left.ask(path, "GET", "/_ping", 5)
    except docker_left.EngineGoneError as err:
        if Path(path).exists() and not os.access(path, os.W_OK):
            return f"{path} may not be opened", "run labctl as root, or as a member of the group docker"
        if path != DEFAULT_SOCKET:
            return str(err), "start it, or set DOCKER_HOST to one that runs"
        here = shutil.which("dockerd", path="/usr/sbin:/usr/bin:/sbin:/bin")
        return str(err), "systemctl start docker" if here else apt_line(["docker.io"])
    return None if status == 200 else (f"the Docker engine at {path} answers {status}", "start it anew")
