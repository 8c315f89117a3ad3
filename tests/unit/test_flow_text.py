"""A flow as a person writes it, and as labctl prints it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.flow_text import FlowTextError, parse
from lab.model import Flow
from lab.policy import flows
from lab.scenario import load
from tests.e2e.isolated import ROOT

SCENARIO = load(ROOT / "scenarios/three-tier.yaml", arms=("none", "agent-nft", "chokepoint"))
FLOWS = flows(SCENARIO)


@given(st.sampled_from(FLOWS))
def test_what_labctl_prints_it_reads(flow: Flow) -> None:
    assert parse(str(flow), SCENARIO.topology) == flow


def test_what_is_left_out_is_what_is_likely() -> None:
    flow = parse("web-1 db 6379/tcp", SCENARIO.topology)
    assert flow == Flow("web-1", "frontend", "www", "db", "store", "tcp", 6379, 4)
    assert parse("web-1 -> db icmp v6", SCENARIO.topology) == Flow("web-1", "frontend", "www", "db", "", "icmp", 0, 6)
    assert parse("api-1/backup db 6379/udp", SCENARIO.topology).user == "backup"
    assert parse("web-1/(stranger) db 6379/tcp", SCENARIO.topology).user == "nobody"


@pytest.mark.parametrize(("text", "words"), [
    ("web-1", "write SOURCE"), ("", "write SOURCE"), ("web-1 db 6379/tcp v5", "write SOURCE"),
    ("nobody db 6379/tcp", "there is no host 'nobody', but: api-1"), ("web-1 x 6379/tcp", "there is no host 'x'"),
    ("web-1/store db 6379/tcp", "web-1 runs no 'store', but: frontend, (stranger)"),
    ("web-1/frontend(eve) db 6379/tcp", "there is no user 'eve'"),
    ("web-1 db 80/tcp", "db offers no 80/tcp, but: 6379/tcp (store)"),
    ("web-1 db/api 6379/tcp", "db offers no 6379/tcp by api"),
])
def test_mistakes_say_what_there_is(text: str, words: str) -> None:
    with pytest.raises(FlowTextError) as err:
        parse(text, SCENARIO.topology)
    assert words in str(err.value)
