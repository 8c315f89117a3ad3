"""Takes debugging information out of a BPF object, and keeps its types (BTF): half as much to place on each host."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

_SONAME = "libbpf.so.1"


def stripped(unfinished: Path) -> bool:
    """Rewrite an object file without DWARF, by libbpf's linker; whether it was done: without libbpf it stays as it is.

    Source: bpf_linker__* of libbpf.h (1.0 and later); `bpftool gen object` does the same.
    """
    try:
        so = ctypes.CDLL(_SONAME)
    except OSError:
        return False
    so.bpf_linker__new.restype = ctypes.c_void_p
    target = unfinished.with_name(f"{unfinished.name}-stripped")
    linker = ctypes.c_void_p(so.bpf_linker__new(bytes(target), None))
    if not linker:
        return False
    try:
        failed = so.bpf_linker__add_file(linker, bytes(unfinished), None) or so.bpf_linker__finalize(linker)
        if not failed:
            target.rename(unfinished)
        return not failed
    finally:
        so.bpf_linker__free(linker)
        with suppress(FileNotFoundError):
            target.unlink()
