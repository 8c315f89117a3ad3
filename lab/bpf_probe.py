"""bpf(2), as far as asking for it goes: load the smallest program there is, attach it to a cgroup of our own.

Source of numbers and layouts: include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCHED_CLS, CGROUP_SKB = 3, 8  # program types
_PROG_LOAD, _OBJ_GET_INFO_BY_FD, _LINK_CREATE = 5, 15, 28
_CGROUP_INET_EGRESS = 1
_SYSCALL = {"x86_64": 321, "aarch64": 280}
_RETURN_1 = struct.pack("<BBhi", 0xB7, 0, 0, 1) + struct.pack("<BBhi", 0x95, 0, 0, 0)  # r0 = 1; exit (1: let it pass)
_ATTR_SIZE = 128
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def program(kind: int) -> Iterator[int]:
    """A loaded program of `kind` that lets everything pass, as a descriptor. Raises OSError."""
    code, licence = ctypes.create_string_buffer(_RETURN_1), ctypes.create_string_buffer(b"GPL")
    fd = _bpf(_PROG_LOAD, struct.pack("<IIQQ", kind, len(_RETURN_1) // 8,
                                      ctypes.addressof(code), ctypes.addressof(licence)))
    try:
        yield fd
    finally:
        os.close(fd)


def attach_to_cgroup(cgroup: Path) -> None:
    """Attach a program to `cgroup` and take it away again. Raises OSError."""
    with program(CGROUP_SKB) as prog:
        target = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.close(_bpf(_LINK_CREATE, struct.pack("<IIII", prog, target, _CGROUP_INET_EGRESS, 0)))
        finally:
            os.close(target)


def is_compiled() -> bool:
    """Whether the kernel compiles programs (JIT), told by one that it has just loaded. Raises OSError."""
    with program(SCHED_CLS) as prog:
        info = ctypes.create_string_buffer(256)
        _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", prog, len(info), ctypes.addressof(info)))
        _type, _id, _tag, compiled_bytes = struct.unpack_from("<II8sI", info.raw)
        return bool(compiled_bytes)


def _bpf(command: int, attributes: bytes) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of bpf(2) on {platform.machine()} is not known here")
    attr = ctypes.create_string_buffer(attributes, _ATTR_SIZE)
    got: int = _libc.syscall(number, command, attr, _ATTR_SIZE)
    if got < 0:
        err = ctypes.get_errno()
        raise OSError(err, os.strerror(err))
    return got
