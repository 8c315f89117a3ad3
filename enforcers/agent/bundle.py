"""The daemon as one file, the same byte for byte wherever it is built, and the plan that runs it at a point."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from importlib.resources import files
from typing import Literal

from lab.model import PointPlan

AGENT_DIR = "/run/host/agent"
_PYTHON = ("/usr/bin/python3", "-I", "-S")  # no site packages, no environment: the standard library alone
_MAIN = "import sys\nfrom daemon.cli import main\nsys.exit(main(sys.argv[1:]))\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip file can say


@cache
def agent_zipapp() -> bytes:
    """agent.pyz: the daemon's package and a `__main__`, stored uncompressed (zlib's output varies by version)."""
    sources = {f"daemon/{item.name}": item.read_bytes() for item in files("enforcers.agent.daemon").iterdir()
               if item.name.endswith(".py")}
    sources["__main__.py"] = _MAIN.encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(sources):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system, entry.external_attr = 3, 0o600 << 16
            archive.writestr(entry, sources[name])
    return b"#!/usr/bin/python3 -IS\n" + buffer.getvalue()


def agent_plan(mode: Literal["agent", "router"], rules: str, policy: bytes, directory: str = AGENT_DIR) -> PointPlan:
    """What to place and run at one point: the agent in `mode` with this rule set and policy file, in `directory`."""

    def command(name: str, *more: str) -> tuple[str, ...]:
        return (*_PYTHON, f"{directory}/agent.pyz", name, "--dir", directory, *more)

    return PointPlan(
        files={
            f"{directory}/agent.pyz": agent_zipapp(),
            f"{directory}/policy.json": policy,
            f"{directory}/rules.nft": rules.encode(),
        },
        up=(command("start", "--mode", mode),),
        ready=command("ready"),
        update=(command("update"),),
        collect=command("collect"),
        down=(command("stop"),),
    )
