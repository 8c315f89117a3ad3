"""What lies in the daemon's directory, and the commands that put its rule set in and take it out."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = "labctl_agent"
_TOOL_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
_NFT_TIMEOUT_S = 60


class AgentError(Exception):
    """What went wrong, for whoever called the command, in one line."""


@dataclass(frozen=True)
class Directory:
    """Paths under one directory of mode 0700. The first three were placed by the deployment and stay."""

    path: Path

    @property
    def rules(self) -> Path:
        return self.path / "rules.nft"

    @property
    def policy(self) -> Path:
        return self.path / "policy.json"

    @property
    def socket(self) -> Path:
        return self.path / "sock"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def before(self) -> Path:
        return self.path / "before.json"

    @property
    def log(self) -> Path:
        return self.path / "log"

    def secure(self) -> None:
        """Make it ours alone; raises AgentError where it is somebody else's."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.path.stat().st_uid != os.geteuid():
            raise AgentError(f"{self.path}: owned by another user; choose another --dir")
        self.path.chmod(0o700)

    def read_policy(self) -> dict[str, Any]:
        try:
            policy: dict[str, Any] = json.loads(self.policy.read_text())
        except (OSError, ValueError) as err:
            raise AgentError(f"{self.policy}: {err}; deploy it again") from err
        if policy.get("version") != 1:
            raise AgentError(f"{self.policy}: version {policy.get('version')!r}; this agent reads version 1")
        return policy

    def take_lock(self) -> int | None:
        """Hold the lock for as long as the process lives; None where another process holds it."""
        handle = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        return handle

    def holder(self) -> int:
        """The pid that the holder of the lock wrote there, 0 where there is none."""
        with suppress(OSError, ValueError):
            return int(self.lock.read_text())
        return 0

    def remove_ours(self) -> None:
        for path in (self.socket, self.lock, self.before, self.log):
            path.unlink(missing_ok=True)


def nft(*arguments: str, input: str | None = None) -> str:
    """Run nft and return what it printed; raises AgentError with its first complaint."""
    try:
        done = subprocess.run(["nft", *arguments], input=input, capture_output=True, text=True, check=False,
                              env=_TOOL_ENV, timeout=_NFT_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise AgentError(f"nft: {err}") from err
    if done.returncode:
        complaint = next(iter(done.stderr.strip().splitlines()), f"status {done.returncode}")
        raise AgentError(f"nft: {complaint}")
    return done.stdout


def delete_table() -> None:
    """Remove our table by its exact name; one that is not there is no mistake."""
    nft("-f", "-", input=f"table inet {TABLE}\ndelete table inet {TABLE}\n")


def in_force(directory: Directory) -> str | None:
    """Why the rule set of the directory is not what the kernel enforces now, or None if it is."""
    try:
        table = nft("-t", "list", "table", "inet", TABLE)
    except AgentError as err:
        return str(err)
    for hook in directory.read_policy()["hooks"]:
        if f"type filter hook {hook} " not in table:
            return f"the table has no chain on hook {hook}"
    rules = directory.rules.read_text()
    mark = rules.partition("ct mark set ")[2].partition("\n")[0]
    return None if mark and f"ct mark set {mark}" in table else "the table in force is not the one of rules.nft"
