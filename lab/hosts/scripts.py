"""Services that are scripts: what is put at a script's path, and how it is started. Pure.

The process is the interpreter's, with the script as its first argument, as of any script; the service itself is the
built-in one, which the script loads, so that attempts are made and judged as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from lab.model import Process

LIBRARY_PATH = "/run/host/labhost.so"
INTERPRETERS: Mapping[str, str] = {"python3": "/usr/bin/python3", "bash": "/usr/bin/bash"}
_TEXTS: Mapping[str, str] = {
    "python3": f"""import ctypes
import sys

words = [b"serve", *map(str.encode, sys.argv[2:]), None]
raise SystemExit(ctypes.CDLL("{LIBRARY_PATH}").serve_main(len(words) - 1, (ctypes.c_char_p * len(words))(*words)))
""",
    "bash": f"""enable -f {LIBRARY_PATH} serve
"$@"
""",
}


def text(process: Process) -> bytes:
    """The script of a process that has an interpreter; its name is in it, so that no two have one content."""
    assert process.interpreter is not None
    return f"# {process.name}\n{_TEXTS[process.interpreter]}".encode()


def command(process: Process) -> list[str]:
    """How a process is started, before its own arguments: its executable, or its interpreter with its script."""
    return [process.path] if process.interpreter is None else [INTERPRETERS[process.interpreter], process.path]
