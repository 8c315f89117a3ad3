"""Hosts that never stand are given up, with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.isolated import ROOT, call, needs_isolation

pytestmark = [needs_isolation, pytest.mark.e2e]


def hanging(me: Any, argument: object) -> str:
    from lab.backends import mininet_net
    from lab.isolation import RUN_DIR
    from lab.scenario import load

    mininet_net.HOSTS_TIMEOUT_S = 0.5
    slow = Path("/run/slow")
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    (RUN_DIR / "hosts").mkdir()
    topology = load(ROOT / "scenarios/three-tier.yaml", arms=("none", "agent-nft", "chokepoint")).topology
    try:
        mininet_net.make_net(topology, slow, RUN_DIR / "hosts")
    except OSError as err:
        return str(err)
    return "they stood"


def test_hosts_that_do_not_stand_in_time_are_given_up() -> None:
    assert "did not stand within 0.5 s" in call("tests.e2e.test_hosts_that_hang", "hanging")
