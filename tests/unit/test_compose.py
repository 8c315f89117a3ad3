"""Compose files as scenarios: what is carried over, what is listed because it is not, what is wrong in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from bench.commands import common
from lab.hosts import roles
from lab.hosts.attempts import Actor, Attempt, Campaign, Real, probe_command
from lab.importers.compose import ComposeError, Imported, import_compose
from lab.model import Flow, Scenario
from lab.policy import decide
from lab.scenario import ScenarioError, loads
from tests.e2e.isolated import ROOT

SHOP = ROOT / "tests/data/compose/compose.yaml"


def imported(tmp_path: Path, text: str, **options: bool) -> Imported:
    file = tmp_path / "compose.yaml"
    file.write_text(text)
    return import_compose(file, **options)


def scenario(made: Imported) -> Scenario:
    return loads(made.text, "made.yaml")


def test_the_shop_is_what_it_was() -> None:
    assert import_compose(SHOP).text == (ROOT / "tests/golden/compose/shop.yaml").read_text()


def test_the_shop_s_policy_is_its_dependencies_and_its_published_ports() -> None:
    found = scenario(import_compose(SHOP))

    def allowed(source: str, target: str, port: int) -> bool:
        (runs,), (serves,) = found.topology.hosts[source].runs, found.topology.hosts[target].runs
        flow = Flow(source, runs, found.topology.processes[runs].user, target, serves, "tcp", port, 4)
        return decide(found.policy, flow, found.topology).allow

    assert allowed("client", "web", 80) and allowed("web", "api-2", 8000) and allowed("api-1", "cache", 11211)
    assert allowed("worker", "database", 6379)
    assert not allowed("client", "api-1", 8000) and not allowed("web", "database", 6379)
    assert not allowed("cache", "database", 6379) and not allowed("api-1", "web", 80)
    assert found.backend == "docker" and found.topology.hosts["api-2"].image == "labctl-test/api"
    assert found.topology.hosts["client"].external


def test_built_in_services_stand_in_where_asked_and_run_anywhere() -> None:
    made = import_compose(SHOP, built_in=True)
    found = scenario(made)
    assert found.backend == "mininet" and not any(p.real for p in found.topology.processes.values())
    assert any("its image labctl-test/nginx; a built-in service stands in for it" in text for text in made.left_out)


def test_every_key_that_is_not_carried_over_is_listed(tmp_path: Path) -> None:
    made = imported(tmp_path, "services:\n  web:\n    image: nginx\n    privileged: true\n"
                              "    volumes: [a:/b]\n"
                              "    restart: always\n"
                              "    ports: ['127.0.0.1:8080:80', {target: 53, protocol: udp}, '$P']\n"
                              "secrets: {x: {}}\n")
    assert set(made.left_out) == {"secrets: the file's top-level 'secrets'", "web: its privileged", "web: its volumes",
                                  "web: the variable P, which the file gives no default", "web: the port $P"}
    (rule,) = scenario(made).policy.rules
    assert [str(s.low) + s.proto for s in rule.services] == ["80tcp", "53udp"]


def test_what_the_file_leaves_to_an_image_is_made_up_and_told(tmp_path: Path) -> None:
    made = imported(tmp_path, "services:\n  cache: {image: 'redis:7'}\n  app: {build: ., depends_on: [cache]}\n")
    found = scenario(made)
    assert str(found.topology.processes["cache"].listens[0].low) == "6379"
    assert found.topology.processes["cache"].command == ()  # as its image says
    assert any("6379/tcp is what an image called redis listens on" in text for text in made.invented)
    assert any("cache: its program is taken for /usr/local/bin/redis-server" in text for text in made.invented)
    assert any("app: how it is built" in text for text in made.left_out)
    assert set(found.invented) == {*made.invented, *(f"not carried over: {text}" for text in made.left_out)}


@pytest.mark.parametrize(("text", "said"), [
    ("services: [", ":1: is not YAML"),
    ("- a", "is not a compose file; it has to have services: …"),
    ("services: {}", "services: there are none"),
    ("services: {web: nginx}", "services.web: is not a mapping"),
])
def test_what_is_no_compose_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ComposeError) as caught:
        imported(tmp_path, text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


# --- real programs ------------------------------------------------------------------------------


def test_what_needs_a_container_says_so_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    made = import_compose(SHOP).text
    with pytest.raises(ScenarioError) as caught:
        loads(made.replace("backend: docker\n", ""), "made.yaml")
    said = [str(problem) for problem in caught.value.problems]
    assert sum("only a container has that; write backend: docker" in line for line in said) == 10
    with pytest.raises(typer.Exit) as refused:
        common.on_backend(loads(made, "made.yaml"), "mininet")
    assert refused.value.exit_code == 2
    assert "needs a container; leave out --backend mininet" in capsys.readouterr().err


def test_no_built_in_service_listens_where_a_real_program_does() -> None:
    topology = scenario(import_compose(SHOP)).topology
    assert roles.real_ports(topology) == {"web": (("tcp", 80),), "api-1": (("tcp", 8000),), "api-2": (("tcp", 8000),),
                                          "database": (("tcp", 6379),), "cache": (("tcp", 11211),)}
    for actor, by in roles.listeners(topology).items():
        assert all(port > 60000 for ports in by.values() for port in ports), actor


def test_an_arrival_at_a_real_program_is_what_was_captured_of_this_very_attempt() -> None:
    actor = Actor("web", "web", "www")
    real = Real(frozenset({("10.0.0.2", "tcp", 80)}), {("web", 4): "10.0.0.1", ("db", 4): "10.0.0.2"})
    attempts = [Attempt(actor, "tcp", 4, "10.0.0.2", port) for port in (80, 81)]
    lines = [probe_command(1.0, real)(token, attempt) for token, attempt in enumerate(attempts)]
    assert [line.split("\t")[1] for line in lines] == ["reach", "probe"]

    def arrivals(captured: dict[tuple[str, int, str, int], int]) -> list[int]:
        campaign = Campaign(attempts, probe_command(1.0, real), 0)
        for index in range(2):  # token, outcome, errno, sport, start, connect, end, bytes
            campaign.end(index, ["p", str(index), "TIMED_OUT", "0", "4000", "1000", "0", "2000", "0"])
        real.settle(campaign, captured)
        return campaign.arrivals

    assert arrivals({("10.0.0.2", 80, "10.0.0.1", 4000): 1500}) == [1500, 0]  # its answer was lost: it has arrived
    assert arrivals({("10.0.0.2", 80, "10.0.0.1", 4000): 900}) == [0, 0]  # an earlier one from the same port
    assert arrivals({("10.0.0.2", 80, "10.0.0.9", 4000): 1500, ("10.0.0.2", 80, "10.0.0.1", 4001): 1500}) == [0, 0]
