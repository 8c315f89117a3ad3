"""Compiles a kernel program to a BPF object, or a program beside it, once for each state of its source."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import subprocess
import sysconfig
from pathlib import Path

from lab.bpf.strip import stripped
from lab.packages import apt_line

FLAGS = ("-target", "bpf", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-mcpu=v3")
NATIVE = ("-O2", "-s", "-Wall", "-Wextra", "-Werror")
PACKAGES = ("clang", "linux-libc-dev")
_FORM = "1 stripped"  # of what is kept; an older form is compiled anew
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


class BpfBuildError(RuntimeError):
    """The program could not be compiled; the message says why and what to do."""


def compiled(source: Path, out_dir: Path | None = None, flags: tuple[str, ...] = ()) -> bytes:
    """The BPF object of the C file `source`, compiled with clang (and `flags`) unless this very source was before.

    Kept in `out_dir`: by default `_build` beside the source, or the user's cache where that cannot be written to.
    Headers are the kernel's own (<linux/…>) and those beside the source. Raises BpfBuildError.
    """
    return _kept(source, out_dir, (*FLAGS, *flags, "-c"), ".o")


def native(source: Path, out_dir: Path | None = None) -> bytes:
    """The C file `source` as a program of this machine's, kept as `compiled` keeps its own. Raises BpfBuildError."""
    return _kept(source, out_dir, NATIVE, "")


def _kept(source: Path, out_dir: Path | None, flags: tuple[str, ...], ending: str) -> bytes:
    digest = hashlib.sha256(" ".join((_FORM, *flags)).encode())
    for path in (source, *sorted(_included(source))):
        digest.update(path.read_bytes())
    name = f"{source.name.partition('.')[0]}-{digest.hexdigest()[:16]}{ending}"
    target = (out_dir or _place(source.parent)) / name
    try:
        if not target.exists():
            _compile(source, target, flags)
        return target.read_bytes()
    except PermissionError as err:
        raise BpfBuildError(f"{source.name}: {target.parent}: {err.strerror}; set HOME or XDG_CACHE_HOME to a "
                            "directory of your own") from err


def _included(source: Path) -> set[Path]:
    """Every file that `source` includes by a name in quotes, directly or not: all lie beside it."""
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        for name in _INCLUDE.findall(waiting.pop().read_text()):
            path = source.parent / name
            if path not in found:
                found.add(path)
                waiting.append(path)
    return found


def _place(beside: Path) -> Path:
    own = beside / "_build"
    if os.access(own if own.exists() else beside, os.W_OK):
        return own
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "labctl"


def _compile(source: Path, target: Path, flags: tuple[str, ...]) -> None:
    clang = shutil.which("clang")
    if clang is None:
        raise BpfBuildError(f"{source.name}: clang is not installed; {apt_line(PACKAGES)}")
    # Under a name of our own first: another run may be compiling, or reading, at the same time.
    unfinished = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
    # <linux/…> includes <asm/…>, which Debian keeps in a directory of the machine's own architecture.
    include = f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH') or 'x86_64-linux-gnu'}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([clang, *flags, include, str(source), "-o", str(unfinished)],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), f"status {done.returncode}")
            raise BpfBuildError(f"{source.name}: {said.strip()}; {apt_line(PACKAGES)}")
        if "-c" in flags:
            stripped(unfinished)
        unfinished.rename(target)
    except OSError as err:
        raise BpfBuildError(f"{source.name}: {err.filename or target}: {err.strerror}; make it writable") from err
    finally:
        unfinished.unlink(missing_ok=True)
