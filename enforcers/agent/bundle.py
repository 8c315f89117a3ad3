"""The daemon as one file, the same byte for byte wherever it is built, and the plan that runs it at a point."""

from __future__ import annotations

from functools import cache
from typing import Literal

from enforcers.zipapp import PYTHON, archive, beside, package
from lab.model import PointPlan

AGENT_DIR = "/run/host/agent"
_MAIN = b"import sys\nfrom daemon.cli import main\nsys.exit(main(sys.argv[1:]))\n"


@cache
def agent_zipapp() -> bytes:
    """agent.pyz: the daemon's package and a `__main__`."""
    return archive(package("enforcers.agent.daemon", "daemon") | beside("enforcers.agent.background")
                   | {"__main__.py": _MAIN})


def agent_plan(mode: Literal["agent", "router"], rules: str, policy: bytes, directory: str = AGENT_DIR) -> PointPlan:
    """What to place and run at one point: the agent in `mode` with this rule set and policy file, in `directory`."""

    def command(name: str, *more: str) -> tuple[str, ...]:
        return (*PYTHON, f"{directory}/agent.pyz", name, "--dir", directory, *more)

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
