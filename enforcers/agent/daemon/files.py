"""What lies in the daemon's directory, and the commands that put its rule set in and take it out.

Every command of the agent is a process of its own, on every host of a lab: what is imported here is paid for hundreds
of times. So no pathlib, subprocess, typing or dataclasses; with them a command took two and a half times the CPU.
"""

# ruff: noqa: PTH100, PTH101, PTH103, PTH108, PTH116, PTH123
from __future__ import annotations

import fcntl
import os
import select
import signal
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TABLE = "labctl_agent"
_TOOL_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
_NFT_TIMEOUT_S = 60


class AgentError(Exception):
    """What went wrong, for whoever called the command, in one line."""


class Directory:
    """Paths under one directory of mode 0700. The first two were placed by the deployment and stay."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)
        self.rules, self.policy = f"{self.path}/rules.nft", f"{self.path}/policy.json"
        self.socket, self.lock = f"{self.path}/sock", f"{self.path}/lock"
        self.before, self.log = f"{self.path}/before", f"{self.path}/log"

    def secure(self) -> None:
        """Make it ours alone; raises AgentError where it is somebody else's."""
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        if os.stat(self.path).st_uid != os.geteuid():
            raise AgentError(f"{self.path}: owned by another user; choose another --dir")
        os.chmod(self.path, 0o700)

    def read_policy(self) -> dict[str, Any]:
        import json  # `ready` and `collect` do without

        try:
            policy: dict[str, Any] = json.loads(read(self.policy))
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
            return int(read(self.lock))
        return 0

    def remove_ours(self) -> None:
        for path in (self.socket, self.lock, self.before, self.log):
            remove(path)


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def remove(path: str) -> None:
    """Remove a file; one that is not there is no mistake."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def nft(*arguments: str, input: str = "") -> str:
    """Run nft and return what it printed; raises AgentError with its first complaint."""
    given, out, err = (os.memfd_create(name) for name in ("in", "out", "err"))  # files: no pipe can fill up
    try:
        with open(given, "w", encoding="utf-8", closefd=False) as file:
            file.write(input)
        os.lseek(given, 0, os.SEEK_SET)
        moved = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate((given, out, err))]
        pid = os.posix_spawn(_find("nft"), ["nft", *arguments], _TOOL_ENV, file_actions=moved)
        status = _await(pid, _NFT_TIMEOUT_S)
        if status:
            complaint = next(iter(_said(err).strip().splitlines()), f"status {status}")
            raise AgentError(f"nft: {complaint}")
        return _said(out)
    except OSError as failure:
        raise AgentError(f"nft: {failure}") from failure
    finally:
        for handle in (given, out, err):
            os.close(handle)


def _find(tool: str) -> str:
    for place in _TOOL_ENV["PATH"].split(":"):
        if os.access(f"{place}/{tool}", os.X_OK):
            return f"{place}/{tool}"
    raise AgentError(f"{tool}: not in {_TOOL_ENV['PATH']}; install it")


def _await(pid: int, timeout_s: float) -> int:
    """The exit status of a child, which is killed when it takes longer."""
    handle = os.pidfd_open(pid)
    try:
        if not select.select([handle], [], [], timeout_s)[0]:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _said(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    with open(handle, encoding="utf-8", errors="replace", closefd=False) as file:
        return file.read()


def delete_table() -> None:
    """Remove our table by its exact name; one that is not there is no mistake."""
    nft("-f", "-", input=f"table inet {TABLE}\ndelete table inet {TABLE}\n")


def is_enforced() -> bool:
    """Whether there is a table of ours, of whatever rule set."""
    try:
        nft("-t", "list", "table", "inet", TABLE)
    except AgentError:
        return False
    return True


def in_force(directory: Directory) -> str | None:
    """Why the rule set of the directory is not what the kernel enforces now, or None if it is."""
    try:
        table, rules = nft("-t", "list", "table", "inet", TABLE), read(directory.rules)
    except (AgentError, OSError) as err:
        return str(err)
    for hook in _hooks(rules):
        if f"type filter hook {hook} " not in table:
            return f"the table has no chain on hook {hook}"
    mark = rules.partition("ct mark set ")[2].partition("\n")[0]
    return None if mark and f"ct mark set {mark}" in table else "the table in force is not the one of rules.nft"


def _hooks(rules: str) -> list[str]:
    """The hooks that the rule set has base chains on."""
    return [part.partition(" ")[0] for part in rules.split("type filter hook ")[1:]]
