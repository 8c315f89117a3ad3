"""One host that this agent serves: what is kept about it, and its files and processes as it sees them."""

from __future__ import annotations

import os
import time
from _collections import deque  # type: ignore[import-not-found]  # `collections` brings much besides

from .executables import open_on, running
from .lean import Counts, dumps, loads, suppress
from .place import AgentError, read, remove
from .telemetry import Exec, Teller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_RECENT = 256  # denied flows that are kept to answer `explain`


class Host:
    """One host. `cookie`: its network's number; `index`, `slot`: where its tables lie; `handles`: root, proc, net."""

    def __init__(self, name: str, directory: str, cookie: int, index: int) -> None:
        self.name, self.directory, self.cookie, self.index = name, directory, cookie, index
        self.handles: tuple[int, ...] = ()
        self.slot = 2 * index
        self.epoch = 0
        self.policy: dict[str, Any] | None = None
        self.left: float | None = None  # when the tables that are not in force now were left
        self.teller: Teller | None = None
        self.recent: deque[bytes] = deque(maxlen=_RECENT)
        self.lost: Counts = Counts()
        self.seen: Counts = Counts()
        self.counters: dict[str, int] = {}
        self.interfaces: list[str] = []  # where this host's start attached programs; not known of a dead agent's
        self.looked = 0.0  # when its listeners' holders were looked at last
        self.since = time.monotonic()
        self.update_ms = self.revoke_ms = 0.0  # the last change of policy: until it was in force; its walk afterwards

    def meet(self, handles: tuple[int, ...]) -> None:
        for handle in self.handles:
            os.close(handle)
        self.handles = handles

    @property
    def root(self) -> int:
        return self._handle(0)

    @property
    def proc(self) -> int:
        return self._handle(1)

    @property
    def net(self) -> int:
        return self._handle(2)

    def _handle(self, number: int) -> int:
        if not self.handles:
            raise AgentError(f"{self.name}: has not spoken to this agent since it took over; ask it for anything")
        return self.handles[number]

    def note(self, slot: int, epoch: int, policy: dict[str, Any], text: bytes) -> bytes:
        """For the next agent: what is in force if the kernel says that `epoch` is. `text`: the policy as it was placed.
        Modes may have been changed since. `noted` reads it.
        """
        kept = {"name": self.name, "directory": self.directory, "cookie": self.cookie, "index": self.index,
                "slot": slot, "epoch": epoch, "mode": policy["mode"],
                "enforced": policy.get("enforced", [])}
        return dumps(kept) + b"\n" + text


def noted(path: str, config_of: Callable[[int], dict[str, Any] | None]) -> tuple[dict[str, Any], bytes]:
    """Of the note at `path` and the next one beside it the one that the kernel has in force, and its policy's text.

    `config_of`: what the kernel has for a host, by its network.
    """
    with suppress(FileNotFoundError, ValueError):
        kept, text = _parts(read(f"{path}.next"))
        config = config_of(kept["cookie"])
        if config is not None and config["epoch"] == kept["epoch"]:
            os.rename(f"{path}.next", path)
            return kept, text
        remove(f"{path}.next")
    return _parts(read(path))


def _parts(note: bytes) -> tuple[dict[str, Any], bytes]:
    head, _, text = note.partition(b"\n")
    return loads(head), text


def wanted(host: Host) -> set[str]:
    """The executables that rules name, or that the host is said to run."""
    assert host.policy is not None
    return {path for _, path, _ in host.policy["executables"]} | set(host.policy["expected"])


def placed(host: Host, name: str, here: bool) -> bytes:
    """A file that was placed for us on the host, or `here`, where the agent is."""
    try:
        if here:
            return read(f"{host.directory}/{name}")
        with os.fdopen(open_on(host.root, f"{host.directory}/{name}"), "rb") as file:
            return file.read()
    except OSError as err:
        raise AgentError(f"{host.name}: {host.directory}/{name}: {err.strerror}; deploy it again") from err


def by_process(host: Host, event: Exec) -> tuple[int, str]:
    return running(host.proc, event.pid)


def by_names(host: Host, event: Exec) -> tuple[int, str]:
    path = path_of(host, event)
    if path is None:
        raise FileNotFoundError
    return open_on(host.root, path), path


def path_of(host: Host, event: Exec) -> str | None:
    """The path on its host of a file that is known by device and by names within its file system."""
    inside = "/".join(["", *reversed(event.names)])
    device = f"{event.exe[2] >> 20}:{event.exe[2] & 0xFFFFF}"
    with suppress(OSError):
        mounts = os.open("1/mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=host.proc)
        with os.fdopen(mounts, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                words = line.split()
                root = "" if words[3] == "/" else words[3]
                if words[2] == device and inside.startswith(f"{root}/"):
                    return ("" if words[4] == "/" else words[4]) + inside[len(root):]
    return None
