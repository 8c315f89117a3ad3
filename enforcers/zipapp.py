"""A daemon as one file that Python runs, the same byte for byte wherever it is built."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from importlib.resources import files

PYTHON = ("/usr/bin/python3", "-I", "-S")  # no site packages, no environment: the standard library alone
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip file can say


def archive(sources: Mapping[str, bytes]) -> bytes:
    """These files, one of them `__main__.py`; stored uncompressed, since what zlib makes varies by version."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name in sorted(sources):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system, entry.external_attr = 3, 0o600 << 16
            file.writestr(entry, sources[name])
    return b"#!/usr/bin/python3 -IS\n" + buffer.getvalue()


def package(name: str, under: str) -> dict[str, bytes]:
    """The modules of the package `name`, as files below `under`."""
    return {f"{under}/{item.name}": item.read_bytes() for item in files(name).iterdir() if item.name.endswith(".py")}


def beside(*modules: str) -> dict[str, bytes]:
    """Single modules at their own names, in packages that are empty otherwise."""
    found: dict[str, bytes] = {}
    for module in modules:
        *packages, name = module.split(".")
        found |= {f"{'/'.join(packages[:depth])}/__init__.py": b"" for depth in range(1, len(packages) + 1)}
        found[f"{'/'.join(packages)}/{name}.py"] = (files(".".join(packages)) / f"{name}.py").read_bytes()
    return found
