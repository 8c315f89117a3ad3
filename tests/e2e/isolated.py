"""Run a function of the lab in a process of its own, inside private namespaces, and get its JSON back.

    python -m tests.e2e.isolated MODULE FUNCTION [JSON argument]

The function gets a RunIdentity and the argument, and returns something JSON can say.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@cache
def isolation() -> str:
    """Why this user cannot have private namespaces here, or nothing."""
    if os.getpid() == 1:  # inside of a run, which proves it
        return ""
    done = subprocess.run([sys.executable, "-c", "from lab.isolation import run_isolated as r; r(lambda me: 0)"],
                          cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stderr.strip().rpartition("\n")[2]


needs_isolation = pytest.mark.skipif(bool(isolation()), reason=f"no private namespaces: {isolation()}")
MARK = "isolated-result: "


def call(module: str, function: str, argument: object = None, timeout_s: float = 300) -> Any:
    """The function's result; fails the test with what it printed if it did not return."""
    argv = [sys.executable, "-m", "tests.e2e.isolated", module, function, json.dumps(argument)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    pytest.fail(f"{function}: status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def main() -> int:
    from lab.isolation import RunIdentity, run_isolated

    module, function, argument = sys.argv[1:4]

    def body(me: RunIdentity) -> int:
        result = getattr(importlib.import_module(module), function)(me, json.loads(argument))
        print(f"{MARK}{json.dumps(result)}")
        return 0

    return run_isolated(body)


if __name__ == "__main__":
    sys.exit(main())
