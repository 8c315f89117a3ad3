"""Tenants with the same addresses, on real packets: whoever takes them for one gives one the other's verdicts."""

from __future__ import annotations

import pytest

from enforcers.agentless.virtual_switch import VirtualSwitch
from lab import features
from tests.e2e.isolated import call, needs_isolation, needs_root

LACKS = features.missing(VirtualSwitch().needs())
pytestmark = [needs_root, needs_isolation, pytest.mark.e2e, pytest.mark.skipif(LACKS is not None, reason=str(LACKS))]


def test_a_switch_keeps_them_apart() -> None:
    assert call("tests.e2e.tenants_lab", "verdicts", False, timeout_s=90) == {"allowed": [], "denied": []}


def test_a_switch_that_takes_them_for_one_is_found_out() -> None:
    found = call("tests.e2e.tenants_lab", "verdicts", True, timeout_s=90)
    assert found["allowed"], "addresses are those of who was told last"
