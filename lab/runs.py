"""The registry of runs: who is alive, and what of the dead is still there.

Every run has a directory of its own under one private to the user. A POSIX lock on its `lock` file, which no child
inherits and which ends with the process however it dies, tells the living from the dead. What a run has outside of its
namespaces is named by its id, and removed by that id alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import select
import shutil
import stat
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from lab.backends import docker_left

Kind = Literal["run", "standing"]
_ID = re.compile(r"labctl-[0-9a-f]{8}")
_OWNER = "user.labctl"
_mine: set[str] = set()  # locked by this process; to open and close such a file would give up its lock


class RegistryError(RuntimeError):
    """The registry cannot be used; the message says where and what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One run as its registry tells: `pid` supervises it, `init` is its first process inside (0: not yet there)."""

    id: str
    kind: Kind
    scenario: str
    pid: int
    started: float  # seconds since the epoch
    cgroup: str | None = None
    init: int = 0
    several_users: bool = True

    @property
    def directory(self) -> Path:
        return registry() / self.id

    @property
    def control(self) -> Path:
        """The unix socket of a standing lab."""
        return self.directory / "control.sock"


def new_id() -> str:
    return f"labctl-{secrets.token_hex(4)}"


@cache
def registry() -> Path:
    """Where this user's runs are registered: /run/labctl for root, else in $XDG_RUNTIME_DIR or /tmp; private.

    Decided once: inside a user namespace the same process is root.
    """
    uid = os.geteuid()
    if uid == 0:
        return Path("/run/labctl")
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / "labctl"
    return Path(f"/tmp/labctl-{uid}")


def enroll(entry: Entry) -> int:
    """Make the entry's directory, locked by this process for as long as it lives. Returns the lock's descriptor.

    Raises RegistryError when the registry belongs to somebody else.
    """
    hidden = hidden_directory(entry.id)  # it gets its name when the lock is held, so that no sweep takes it for dead
    for _ in range(10):
        _own(registry())
        with contextlib.suppress(FileNotFoundError):  # the last of the others has just taken the registry away
            hidden.mkdir(mode=0o700)
            break
    lock = os.open(hidden / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.lockf(lock, fcntl.LOCK_EX)
    _write(hidden, entry)
    hidden.rename(entry.directory)
    _mine.add(entry.id)
    return lock


def update(entry: Entry, **changes: object) -> Entry:
    """The entry with `changes`, written."""
    changed = replace(entry, **changes)  # type: ignore[arg-type]
    _write(changed.directory, changed)
    return changed


def forget(run_id: str) -> None:
    """Remove the directory of a run, by its id alone; the registry with it when it was the last."""
    for directory in (hidden_directory(run_id), registry() / run_id):
        shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(OSError):
        registry().rmdir()


def release(run_id: str) -> bool:
    """Remove what a run has in an engine of containers, then its directory. False if the engine does not let us: then
    the directory stays, by which the next sweep finds it."""
    engine = docker_left.engine_of(registry() / run_id)
    if engine is not None:
        try:
            docker_left.remove(engine, run_id, docker_left.coming(registry() / run_id))
        except docker_left.EngineGoneError:
            return False
    forget(run_id)
    return True


def hidden_directory(run_id: str) -> Path:
    return registry() / f".{run_id}"


def alive() -> list[Entry]:
    """Every run that lives, oldest first."""
    return sorted((e for e in _entries() if _locked(e.directory)), key=lambda e: e.started)


def dead() -> list[str]:
    """The ids of runs whose process is gone and whose directory is still there."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(p.name for p in registry().iterdir() if _ID.fullmatch(p.name) and not _locked(p))
    return []


def mark_cgroup(cgroup: Path) -> None:
    """Write on a cgroup whose it is: this process. Only a marked one is ever taken for a dead run's."""
    os.setxattr(cgroup, _OWNER, _owner(os.getpid()).encode())


def dead_cgroups(root: Path | None) -> list[Path]:
    """Cgroups of runs whose process is gone. One that was marked in another PID namespace is not ours to judge."""
    if root is None:
        return []
    return sorted(p for p in root.iterdir() if _ID.fullmatch(p.name) and _owner_gone(p))


def _owner_gone(cgroup: Path) -> bool:
    try:
        pid, born, namespace = os.getxattr(cgroup, _OWNER).decode().split()
    except (OSError, ValueError):
        return False
    return namespace == _pid_namespace() and _owner(int(pid)) != f"{pid} {born} {namespace}"


def _owner(pid: int) -> str:
    """Process id, time of birth and PID namespace: no other process is ever called so."""
    birth = born(pid)
    return f"{pid} {birth} {_pid_namespace()}" if birth else ""


def born(pid: int) -> str:
    """When a process was born, in clock ticks since the machine was (proc_pid_stat(5)); empty where it is no more."""
    try:
        return birth(Path(f"/proc/{pid}/stat").read_text())
    except OSError:
        return ""


def birth(stat: str) -> str:
    """The same of what its `stat` says; empty of the dead, and where nothing is said."""
    fields = stat.rpartition(")")[2].split()
    return fields[19] if fields and fields[0] not in "ZX" else ""


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def remove_cgroup(cgroup: Path, tries: int = 500) -> None:
    """End every process in `cgroup` and remove it with its children. Quietly done if it is not there."""
    for _ in range(tries):
        if not cgroup.exists():
            return
        with contextlib.suppress(OSError):
            (cgroup / "cgroup.kill").write_text("1")
        for directory, _names, _files in os.walk(cgroup, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()
        if cgroup.exists():
            # Killed processes leave their cgroup when they are reaped; the kernel gives no event for a tree.
            select.select([], [], [], 0.01)


def sweep(root: Path | None) -> list[str]:
    """Remove what dead runs left, and say what, a line each. `root`: where cgroup v2 is, if writable."""
    gone = leftovers(root)
    for cgroup in dead_cgroups(root):
        remove_cgroup(cgroup)
    for run_id in dead():
        if root:
            remove_cgroup(root / run_id)
        release(run_id)
    return gone


def leftovers(root: Path | None) -> list[str]:
    """What `sweep` would remove, a line each."""
    cgroups = {p.name: p for p in dead_cgroups(root)}
    lines = [f"cgroup {path} and every process in it" for path in cgroups.values()]
    for run_id in dead():
        lines += [*_in_engine(run_id), f"directory {registry() / run_id}"]
    return lines


def _in_engine(run_id: str) -> list[str]:
    engine = docker_left.engine_of(registry() / run_id)
    try:
        return docker_left.left(engine, run_id) if engine else []
    except docker_left.EngineGoneError as err:
        return [f"what {run_id} has left in an engine, once it answers: {err}"]


# --- the rim ---


def _own(directory: Path) -> None:
    """Make the registry, or see that it is ours: /tmp is anybody's."""
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise RegistryError(f"labctl: {directory} belongs to somebody else; remove it, or set XDG_RUNTIME_DIR")
    directory.chmod(0o700)


def _write(directory: Path, entry: Entry) -> None:
    fresh = directory / ".run.json"
    fresh.write_text(json.dumps(asdict(entry)))
    fresh.replace(directory / "run.json")


def _entries() -> list[Entry]:
    found = []
    with contextlib.suppress(FileNotFoundError):
        for directory in registry().iterdir():
            with contextlib.suppress(OSError, ValueError, TypeError):
                if _ID.fullmatch(directory.name):
                    found.append(Entry(**json.loads((directory / "run.json").read_text())))
    return found


def _locked(directory: Path) -> bool:
    """Whether a living process holds the lock."""
    if directory.name in _mine:
        return True
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(fd)
    return False
