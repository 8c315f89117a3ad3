"""Of hairpin and virtual-switch-nft nothing is on a host, and nothing is left at the switch."""

from __future__ import annotations

import pytest

from bench import registry
from lab import features
from tests.e2e.isolated import call, needs_isolation, needs_root

pytestmark = [needs_root, needs_isolation, pytest.mark.e2e]


@pytest.mark.parametrize(("name", "asked"), [("hairpin", 3), ("virtual-switch-nft", 0)])
def test_hosts_see_nothing_and_all_is_put_back(name: str, asked: int) -> None:
    """Under hairpin, the three hosts that share a segment ask for each other; under no other arm does any."""
    if lacks := features.missing(registry.load(name).needs()):
        pytest.skip(lacks)
    found = call("tests.e2e.agentless_lab", "unseen", name, timeout_s=120)
    assert found["during"] and found["after"] and found["known"]
    assert found["asked"] == asked
    before, during, after = found["bridges"]
    assert before == after == ["0", "0", "0"]
    assert during[0] == ("4" if name == "hairpin" else "0") and (during[2] == "1") == (name != "hairpin")
