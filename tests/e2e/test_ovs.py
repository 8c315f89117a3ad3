"""virtual-switch-ovs on real packets, in userspace: no defect, the gaps of virtual-switch, nothing left."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from enforcers.agentless.virtual_switch_ovs import VirtualSwitchOvs, VirtualSwitchOvsUserspace
from lab import features
from tests.e2e.isolated import ROOT, call, needs_isolation, needs_root
from tests.e2e.test_agentless_scenarios import check, ran

LACKS = features.missing(VirtualSwitchOvsUserspace().needs())
pytestmark = [needs_root, needs_isolation, pytest.mark.e2e, pytest.mark.skipif(LACKS is not None, reason=str(LACKS))]
USERSPACE, KERNEL = VirtualSwitchOvsUserspace.name, VirtualSwitchOvs.name


@pytest.mark.parametrize("scenario", ["spoofing", "same-segment", pytest.param("three-tier", marks=pytest.mark.slow)])
def test_no_defect_and_the_gaps_of_the_virtual_switch(scenario: str, tmp_path: Any) -> None:
    golden = yaml.safe_load((ROOT / f"tests/golden/{scenario}-gaps.yaml").read_text())["virtual-switch"]
    summary = ran(scenario, str(tmp_path), f"none,{KERNEL},{USERSPACE}")
    check(summary, {USERSPACE: golden, KERNEL: golden})
    assert summary.arms[USERSPACE].unsupported is None
    assert [note for note in summary.notes if note.startswith(f"{USERSPACE}: ") and "a lower bound" in note]
    if lack := features.probe("ovs-kernel"):
        assert lack.problem in (summary.arms[KERNEL].unsupported or "")
    if scenario == "spoofing":
        found = {name: summary.arms[name].spoofing for name in ("none", USERSPACE)}
        assert {name: one.arrived for name, one in found.items() if one} == {"none": 18, USERSPACE: 0}


def test_hosts_see_nothing_a_killed_daemon_closes_and_all_is_put_back() -> None:
    found = call("tests.e2e.ovs_lab", "lived", timeout_s=120)
    assert found == {"unseen": True, "asked": True, "daemons": 2, "ready without": False, "asked without": False,
                     "asked again": True, "back": True, "hosts": True, "left": [], "files": ["lock"]}


def test_fragments_go_with_their_first_and_are_denied_with_it() -> None:
    found = call("tests.e2e.ovs_lab", "fragments", timeout_s=120)
    assert len(found) == 12
    assert found == {flow: "0" if flow.startswith("server") else "2" for flow in found}
