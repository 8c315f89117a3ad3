"""libbpf.so.1 through ctypes: open a CO-RE object, give it maps that are pinned already, load it, attach it.

Standard library only, so that agents can carry it. Once loaded, an object is a set of descriptors, and `syscall` does
the rest. Source of signatures: libbpf.h of libbpf 1.0 to 1.4.
"""

from __future__ import annotations

import ctypes
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import TracebackType
    from typing import Any

_SONAME = "libbpf.so.1"
_LOG_KEPT = 4000
_PRINTER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_POINTER, _TEXT, _INT, _BYTES = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "bpf_object__open_mem": (_POINTER, _TEXT, _BYTES, _POINTER),
    "bpf_object__load": (_INT, _POINTER),
    "bpf_object__close": (None, _POINTER),
    "bpf_object__next_program": (_POINTER, _POINTER, _POINTER),
    "bpf_object__next_map": (_POINTER, _POINTER, _POINTER),
    "bpf_program__name": (_TEXT, _POINTER),
    "bpf_program__fd": (_INT, _POINTER),
    "bpf_program__set_autoload": (_INT, _POINTER, ctypes.c_bool),
    "bpf_program__attach": (_POINTER, _POINTER),
    "bpf_program__expected_attach_type": (_INT, _POINTER),
    "bpf_map__name": (_TEXT, _POINTER),
    "bpf_map__fd": (_INT, _POINTER),
    "bpf_map__reuse_fd": (_INT, _POINTER, _INT),
    "bpf_map__set_max_entries": (_INT, _POINTER, ctypes.c_uint32),
    "bpf_link__fd": (_INT, _POINTER),
    "bpf_link__disconnect": (None, _POINTER),
    "bpf_link__destroy": (_INT, _POINTER),
    "libbpf_set_print": (_POINTER, _POINTER),
}


class BpfLoadError(RuntimeError):
    """An object could not be loaded; the message is one line: what failed, and the last that was said about it."""


class _Library:
    """The functions above, bound once, and what libbpf said last."""

    def __init__(self) -> None:
        try:
            so = ctypes.CDLL(_SONAME, use_errno=True)
        except OSError as err:
            raise BpfLoadError(f"{_SONAME} cannot be opened ({err}); apt-get install -y libbpf1") from err
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(so, name)
            function.restype, function.argtypes = result, arguments
        self.so, self.said = so, ""
        libc = ctypes.CDLL(None)
        buffer = ctypes.create_string_buffer(1 << 16)

        def keep(_level: int, form: bytes, values: int) -> int:
            libc.vsnprintf(buffer, ctypes.c_size_t(len(buffer)), ctypes.c_char_p(form), ctypes.c_void_p(values))
            self.said = (self.said + buffer.value.decode(errors="replace"))[-_LOG_KEPT:]
            return 0

        self._printer = _PRINTER(keep)  # libbpf keeps the pointer, so we keep the function
        so.libbpf_set_print(ctypes.cast(self._printer, ctypes.c_void_p))


_loaded: list[_Library] = []


def _library() -> _Library:
    if not _loaded:
        _loaded.append(_Library())
    return _loaded[0]


class BpfObject:
    """A CO-RE object: opened from ELF bytes, loaded by `load`, unloaded (but what is pinned or linked) by `close`."""

    def __init__(self, elf: bytes) -> None:
        self._elf = elf  # libbpf reads it until the object is closed
        self._library = _library()
        self._library.said = ""
        self._so: Any = self._library.so
        self._object = self._so.bpf_object__open_mem(elf, len(elf), None)
        if not self._object:
            raise BpfLoadError(f"no BPF object: {self._why()}")
        self._programs = self._all(self._so.bpf_object__next_program, self._so.bpf_program__name)
        self._maps = self._all(self._so.bpf_object__next_map, self._so.bpf_map__name)

    def __enter__(self) -> BpfObject:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give its descriptors back. What is pinned stays."""
        if self._object:
            self._so.bpf_object__close(self._object)
            self._object = None

    @property
    def programs(self) -> tuple[str, ...]:
        return tuple(self._programs)

    @property
    def maps(self) -> tuple[str, ...]:
        """Its declared maps; not those that hold its constants."""
        return tuple(name for name in self._maps if "." not in name)

    def only(self, programs: Collection[str]) -> None:
        """Load no others. Before `load`."""
        for name, pointer in self._programs.items():
            self._so.bpf_program__set_autoload(pointer, name in programs)

    def reuse(self, name: str, fd: int) -> None:
        """Let the map `name` be the one that `fd` stands for. Before `load`. Raises BpfLoadError if it does not fit."""
        if self._so.bpf_map__reuse_fd(self._maps[name], fd):
            raise BpfLoadError(f"map {name}: the pinned one cannot be used: {os.strerror(ctypes.get_errno())}")

    def resize(self, name: str, entries: int) -> None:
        """How many entries the map `name` is to have. Before `load`."""
        self._so.bpf_map__set_max_entries(self._maps[name], entries)

    def load(self) -> None:
        """Relocate against the running kernel, and load. Raises BpfLoadError with what the verifier said last."""
        self._library.said = ""
        result = self._so.bpf_object__load(self._object)
        if result:
            raise BpfLoadError(f"{os.strerror(-result)}: {self._why()}")

    def program(self, name: str) -> int:
        """The descriptor of a loaded program; valid until `close`."""
        return int(self._so.bpf_program__fd(self._programs[name]))

    def attach_type(self, name: str) -> int:
        """What the program's section says that it attaches to (enum bpf_attach_type)."""
        return int(self._so.bpf_program__expected_attach_type(self._programs[name]))

    def map(self, name: str) -> int:
        """The descriptor of a loaded map; valid until `close`."""
        return int(self._so.bpf_map__fd(self._maps[name]))

    def attach(self, name: str) -> int:
        """Attach a program where its section says (tracepoints); the link, as a descriptor of the caller's own."""
        link = self._so.bpf_program__attach(self._programs[name])
        if not link:
            err = ctypes.get_errno()
            raise BpfLoadError(f"program {name}: not attached: {os.strerror(err or errno.EINVAL)}")
        fd = os.dup(self._so.bpf_link__fd(link))
        self._so.bpf_link__destroy(link)
        return fd

    # --- parts ---

    def _all(self, following: Callable[[Any, Any], Any], name_of: Callable[[Any], bytes]) -> dict[str, int]:
        found: dict[str, int] = {}
        pointer = None
        while pointer := following(self._object, pointer):
            found[name_of(pointer).decode()] = pointer
        return found

    def _why(self) -> str:
        """The lines of libbpf's and the verifier's that say why, as one."""
        lines = [line.strip() for line in self._library.said.splitlines() if line.strip()]
        chatter = ("processed ", "libbpf: prog", "-- ", "libbpf: failed to")
        telling = [line for line in lines if not line.startswith(chatter)]
        return "; ".join((telling or lines)[-3:]) or os.strerror(ctypes.get_errno())


