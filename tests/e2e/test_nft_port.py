"""What a host may send at its port under virtual-switch-nft; each line of the chain is needed."""

from __future__ import annotations

import pytest

from enforcers.agentless.virtual_switch_nft import VirtualSwitchNft
from lab import features
from tests.e2e.isolated import call, needs_isolation, needs_root

LACKS = features.missing(VirtualSwitchNft().needs())
pytestmark = [needs_root, needs_isolation, pytest.mark.e2e, pytest.mark.skipif(bool(LACKS), reason=str(LACKS))]
CASES = "tests.e2e.nft_port_cases"


def test_a_host_speaks_in_its_own_name_alone() -> None:
    assert call(CASES, "whole", None, timeout_s=60) == {}


def test_each_check_is_needed() -> None:
    found = call(CASES, "weaker", None, timeout_s=60)
    assert len(found) == 7 and all(found.values()), found
