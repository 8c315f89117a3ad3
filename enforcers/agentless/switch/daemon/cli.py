"""switch.pyz: attach, update, ready, collect, detach one port, or serve the switch."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from . import service
from .switchd import DIRECTORY


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="switch.pyz")
    parser.add_argument("order", choices=("attach", "update", "ready", "collect", "detach", "serve"))
    parser.add_argument("--file", type=Path, help="the port's document")
    parser.add_argument("--program", type=Path, default=DIRECTORY / "switch.o")
    given = parser.parse_args(argv)
    if given.order == "serve":
        service.quiet_signals()
        return _reported(lambda: service.serve(given.program))
    port = os.environ.get("LABCTL_PORT", "")
    if given.order == "attach":
        archive = Path(sys.argv[0])
        status = service.ensure(archive, archive.with_name("switch.o"))
        if status:
            return status
    return service.ask(given.order, port, given.file)


def _reported(what) -> int:  # type: ignore[no-untyped-def]
    try:
        return int(what())
    except (OSError, RuntimeError) as err:
        print(f"switch: {err}", file=sys.stderr)
        return 1
