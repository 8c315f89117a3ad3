"""Compiles the built-in service, once for each state of its sources."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
from pathlib import Path

FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")
_SOURCES = Path(__file__).parent


class BuildError(RuntimeError):
    """The service could not be compiled; the message says why and what to do."""


def build(out_dir: Path | None = None, *, static: bool = False, library: bool = False) -> Path:
    """The compiled `labhost` in `out_dir`, made now unless these very sources were compiled there before.

    `static`: one that needs no library, for whatever image a container is of. `library`: what interpreters load.

    By default beside its sources, or in the user's cache where those cannot be written to. The file's name carries a
    digest of sources and flags. Raises BuildError.
    """
    out_dir = out_dir or _place()
    target = out_dir / (f"{_name()}-static" if static else f"{_name()}.so" if library else _name())
    try:
        if target.exists():
            return target
    except PermissionError as err:
        raise BuildError(f"labhost: {out_dir}: {err.strerror}; set HOME or XDG_CACHE_HOME to a directory of your own") \
            from err
    compiler = shutil.which("gcc")
    if compiler is None:
        raise BuildError("labhost: gcc not found; apt-get install -y gcc libc6-dev")
    # Under a name of our own first: another run may be compiling, or reading, at the same time. (Not named by the
    # process id, which is 1 in every run's namespace.)
    unfinished = out_dir / f".labhost-{secrets.token_hex(8)}"
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        flags = (*FLAGS, "-static") if static else (*FLAGS, "-fPIC", "-shared") if library else FLAGS
        _compile([compiler, *flags, "-o", str(unfinished), *map(str, sorted(_SOURCES.glob("*.c")))])
        unfinished.rename(target)
    except OSError as err:
        raise BuildError(f"labhost: {err.filename or out_dir}: {err.strerror}; make the directory writable") from err
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def built() -> bool:
    """Whether `build` would find it compiled already, so that no compiler is needed."""
    try:
        return (_place() / _name()).exists()
    except PermissionError:  # another's directory, which `build` tells in words
        return False


def _place() -> Path:
    beside = _SOURCES / "_build"
    if (beside / _name()).exists() or os.access(beside if beside.exists() else _SOURCES, os.W_OK):
        return beside
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "labctl"


def _name() -> str:
    return f"labhost-{_digest([*sorted(_SOURCES.glob('*.c')), *sorted(_SOURCES.glob('*.h'))])}"


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _compile(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    first = next((line for line in done.stderr.splitlines() if "error" in line), f"gcc ended with {done.returncode}")
    remedy = "; apt-get install -y gcc libc6-dev" if "No such file" in first else ""
    raise BuildError(f"labhost: {first.strip()}{remedy}")
