"""A host seen from outside of it: a command goes into a container's network, or among its processes, and comes back.

Where the agent is on the host itself, it is there already.
"""

from __future__ import annotations

import os

from .place import AgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .place import Place

_NEWNET, _NEWPID = 0x40000000, 0x20000000


class in_network:  # noqa: N801  # reads as what it is
    """While it lasts this process is in the host's network. Raises OSError where the container has gone."""

    def __init__(self, place: Place) -> None:
        self._place, self._home = place, -1

    def __enter__(self) -> None:
        if self._place.container and not self._place.gone:
            self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            _enter(self._place.ways[2], _NEWNET)

    def __exit__(self, *_: object) -> None:
        if self._home >= 0:
            _set(self._home, _NEWNET)
            os.close(self._home)


def among_processes(place: Place, work: Callable[[], None]) -> None:
    """Do it as a process among the host's: by a grandchild, since only who is born into a PID namespace is in it."""
    if not place.container:
        work()
        return
    if not _succeeds(lambda: _enter(f"/proc/{place.container}/ns/pid", _NEWPID, then=work)):
        raise AgentError(f"{place.host}: what runs in its container cannot be looked at")


def _enter(path: str, kind: int, then: Callable[[], None] | None = None) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _set(handle, kind)
    finally:
        os.close(handle)
    if then is not None and not _succeeds(then):
        raise OSError(f"{path}: what was to be done there failed")


def _succeeds(work: Callable[[], None]) -> bool:
    """Whether a child did it without an exception, whose text goes to standard error."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    status = 1
    try:
        work()
        status = 0
    except Exception as err:  # a child's only way to say it
        os.write(2, f"{err}\n".encode(errors="replace"))
    finally:
        os._exit(status)


def _set(handle: int, kind: int) -> None:
    import ctypes  # only who is apart pays for it

    if ctypes.CDLL(None, use_errno=True).setns(handle, kind):
        err = ctypes.get_errno()
        raise OSError(err, f"setns: {os.strerror(err)}")
