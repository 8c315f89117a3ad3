"""Scripts as the kernel tells them: by their interpreter and its first argument; and those that run already.

At execution the kernel itself looks at the arguments. Those of a process that is older than the programs are in /proc
alone, so its tag is written for it, before its sockets take their owner from the tag.
"""

from __future__ import annotations

import os
import struct

from .executables import open_on, processes, running

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FNV64, _PRIME, _MASK = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1
_KEY = struct.Struct("<IIQ")  # struct script_key
_THREAD = struct.Struct("<I")
_TAG = struct.Struct("<IIQQIIQIHH")  # struct task_tag
_PIDFD_THREAD = os.O_EXCL
_MOST_LINKS = 16


class Script:
    """A script that rules or telemetry name: its number, what runs it, its path."""

    __slots__ = ("id", "interpreter", "path")

    def __init__(self, number: int, interpreter: str, path: str) -> None:
        self.id, self.interpreter, self.path = number, interpreter, path


def key(interpreter: int, path: str) -> bytes:
    """What the kernel looks a script up by, of an interpreter with this number."""
    digest = _FNV64
    for byte in os.fsencode(path) + b"\0":
        digest = (digest ^ byte) * _PRIME & _MASK
    return _KEY.pack(interpreter, 1, digest)


def tag(thread: int, script: int, interpreter: int, exe: tuple[int, int, int, int]) -> bytes:
    """A thread, by its number on its host, and what it bears if it runs a script."""
    return _THREAD.pack(thread) + _TAG.pack(script, interpreter, *exe, 0, 0, 0, 0)


def set_tags(pins: str, tags: bytes) -> None:
    """Set tags in a row. Only a process that is among those threads can: the kernel asks for handles of them."""
    if not tags:
        return
    from lab.bpf.syscall import Map

    tasks, size = Map.at(f"{pins}/tasks"), _THREAD.size + _TAG.size
    for at in range(0, len(tags), size):
        try:
            (thread,) = _THREAD.unpack_from(tags, at)
            handle = os.pidfd_open(thread, _PIDFD_THREAD)
        except OSError:  # it ended
            continue
        tasks.put(_THREAD.pack(handle), tags[at + _THREAD.size: at + size])
        os.close(handle)
    tasks.close()


def real(root: int, path: str) -> str:
    """The path of a file on a host once its name is no link any more (`/usr/bin/python3` leads to `python3.11`)."""
    for _ in range(_MOST_LINKS):
        directory = open_on(root, os.path.dirname(path))
        try:
            target = os.readlink(os.path.basename(path), dir_fd=directory)
        except OSError:  # no link
            return path
        finally:
            os.close(directory)
        path = os.path.normpath(os.path.join(os.path.dirname(path), target))
    return path


def known(root: int, listed: Iterable[tuple[int, str, str]]) -> dict[tuple[str, str], Script]:
    """Scripts whose interpreter a host has, by the interpreter's real path and the first argument."""
    found = {}
    for number, interpreter, path in listed:
        try:
            script = Script(number, real(root, interpreter), path)
        except OSError:
            continue
        found[script.interpreter, path] = script
    return found


def running_scripts(proc: int, by_words: dict[tuple[str, str], Script]) -> Iterator[tuple[int, int, Script]]:
    """Every thread (its number on the host) of a process that runs a script, with its executable, open until the next.

    `by_words`: as `known` gives them.
    """
    for pid in processes(proc):
        try:
            handle, path = running(proc, pid)
        except OSError:  # gone meanwhile, or of the kernel
            continue
        try:
            script = by_words.get((path, _first_argument(proc, pid)))
            if script is not None:
                for thread in _threads(proc, pid):
                    yield thread, handle, script
        except OSError:
            continue
        finally:
            os.close(handle)


def _threads(proc: int, pid: int) -> list[int]:
    handle = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    try:
        return [int(name) for name in os.listdir(handle)]
    finally:
        os.close(handle)


def _first_argument(proc: int, pid: int) -> str:
    handle = os.open(f"{pid}/cmdline", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        words = os.read(handle, 4096).split(b"\0")
    finally:
        os.close(handle)
    return os.fsdecode(words[1]) if len(words) > 1 else ""
