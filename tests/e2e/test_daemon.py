"""The daemon on real packets: what its rule sets let through, whom it names, what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from enforcers.agent.agent_nft import AgentNft
from enforcers.agentless.chokepoint import Chokepoint
from lab.model import PointPlan, Policy, Rule, Selector, Service
from tests.e2e.daemon_net import Node, again, network, point, policy, topology

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
    pytest.mark.skipif(not shutil.which("nft", path="/usr/sbin:/usr/bin"), reason="needs nft"),
]
ASKS, SERVES = Selector({"role": ("asks",)}), Selector({"role": ("serves",)})
ALLOWED = Rule("asks serves", "allow", ASKS, SERVES,
               (Service("tcp", 80, 80), Service("udp", 53, 54), Service("icmp")))
POLICY = policy(ALLOWED)
B = {4: "10.9.2.1", 6: "fd09:2::1"}
A = {4: "10.9.1.1", 6: "fd09:1::1"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])
DENIED = ("ECONNREFUSED", "EPERM", "EACCES", "EHOSTUNREACH")


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, Node]]:
    with network() as made, made["b"].endpoint("server", 20002, "serve", "80", "81", "53", "54", "55"), \
            made["a"].endpoint("server", 20002, "serve", "80"):
        yield made


def plans(arm: AgentNft | Chokepoint, rules: Policy = POLICY, left_agent: bool = True) -> dict[str, PointPlan]:
    world = topology(left_agent)
    return {at.host: plan for at, plan in arm.render(arm.compile(rules, world), world).items()}


@pytest.fixture
def deployed(nodes: dict[str, Node], request: pytest.FixtureRequest) -> Iterator[dict[str, PointPlan]]:
    made = plans(*request.param)
    for name, plan in made.items():
        nodes[name].start(plan)
    yield made
    for name, plan in made.items():
        for command in plan.down:
            nodes[name].run(*command)


AGENTS = pytest.mark.parametrize("deployed", [(AgentNft(),)], indirect=True, ids=["agent"])
ONE_AGENT = pytest.mark.parametrize("deployed", [(AgentNft(), POLICY, False)], indirect=True, ids=["agent-at-target"])
ROUTER = pytest.mark.parametrize("deployed", [(Chokepoint(),)], indirect=True, ids=["chokepoint"])
MONITOR = pytest.mark.parametrize("deployed", [(AgentNft("monitor"),), (Chokepoint("monitor"),)], indirect=True,
                                  ids=["agent", "chokepoint"])


@FAMILIES
@pytest.mark.parametrize("deployed", [(AgentNft(),), (AgentNft(), POLICY, False), (Chokepoint(),)], indirect=True,
                         ids=["agent", "agent-at-target", "chokepoint"])
def test_allowed_passes_and_denied_does_not(
        nodes: dict[str, Node], deployed: dict[str, PointPlan], family: int) -> None:
    for proto, port in (("tcp", "80"), ("udp", "53"), ("udp", "54"), ("icmp", "0")):
        assert nodes["a"].ask(proto, B[family], port) == "OPEN", (proto, port)
    for proto, port in (("tcp", "81"), ("udp", "55"), ("udp", "80"), ("tcp", "53")):
        assert nodes["a"].ask(proto, B[family], port) != "OPEN", (proto, port)
    for proto, port in (("tcp", "80"), ("udp", "80"), ("icmp", "0")):
        assert nodes["b"].ask(proto, A[family], port) != "OPEN", (proto, port)


@AGENTS
@FAMILIES
def test_agent_refuses_at_once_and_to_the_own_address_too(
        nodes: dict[str, Node], deployed: dict[str, PointPlan], family: int) -> None:
    for target in (B[family], A[family]):
        for proto in ("tcp", "udp", "icmp"):
            if (target, proto) != (B[family], "icmp"):
                assert nodes["a"].ask(proto, target, "81") in DENIED, (target, proto)
    assert nodes["a"].ask("tcp", "127.0.0.1" if family == 4 else "::1", "80") == "OPEN"


@AGENTS
@FAMILIES
@pytest.mark.parametrize(("proto", "port"), [("tcp", "80"), ("udp", "53"), ("icmp", "0")])
def test_agent_names_both_processes_and_the_user(
        nodes: dict[str, Node], deployed: dict[str, PointPlan], family: int, proto: str, port: str) -> None:
    with nodes["a"].endpoint("asker", 20001, "ask", proto, B[family], port) as said:
        assert said["outcome"] == "OPEN"
        seen = {name: find(nodes[name], plan, proto, said) for name, plan in deployed.items()}
    at_source, at_target = seen["a"], seen["b"]
    assert (at_source["process"], at_source["user"]) == ("/run/bin/asker", "asker")
    assert at_source["source"], at_source["target"] == (A[family], B[family])
    assert at_source["dport"] == int(port)
    assert at_source["bytes"] >= 2 * 32 and at_source["packets"] >= 2
    if proto != "icmp":
        assert at_target["target_process"] == "/run/bin/server"
        assert at_target["by"] in ("listener", "socket")


def find(node: Node, plan: PointPlan, proto: str, said: dict[str, object], kind: str = "flow") -> dict[str, object]:
    records = node.records(plan)
    assert records[0]["t"] == "header" and records[0]["lost"] == {}
    found = [r for r in records if r["t"] == kind and r["proto"] == proto and r["sport"] == said["sport"]]
    assert len(found) == 1, records
    return found[0]


WIDE = policy(Rule("all", "allow", Selector(), Selector(), (Service("tcp", 80, 80), Service("udp", 53, 60))))


@pytest.mark.parametrize("deployed", [(AgentNft(), WIDE)], indirect=True, ids=["agent"])
@FAMILIES
def test_agent_names_both_ends_of_a_flow_within_one_host(
        nodes: dict[str, Node], deployed: dict[str, PointPlan], family: int) -> None:
    with nodes["a"].endpoint("asker", 20001, "ask", "tcp", A[family], "80") as said:
        assert said["outcome"] == "OPEN"
        flow = find(nodes["a"], deployed["a"], "tcp", said)
    assert (flow["process"], flow["user"], flow["target_process"]) == ("/run/bin/asker", "asker", "/run/bin/server")


@pytest.mark.parametrize("deployed", [(AgentNft(), WIDE), (Chokepoint(), WIDE)], indirect=True,
                         ids=["agent", "chokepoint"])
@FAMILIES
def test_icmp_errors_about_an_allowed_flow_come_back(
        nodes: dict[str, Node], deployed: dict[str, PointPlan], family: int) -> None:
    assert nodes["a"].ask("udp", B[family], "60") == "ECONNREFUSED", "nobody listens there, and the target says so"


@AGENTS
def test_agent_knows_the_user_even_when_the_socket_is_gone(
        nodes: dict[str, Node], deployed: dict[str, PointPlan]) -> None:
    burst = ("import os, socket; os.setuid(20001)\n"
             "for i in range(200):\n"
             f"    socket.create_connection(('{B[4]}', 80)).close()\n")
    nodes["a"].run("/usr/bin/python3", "-c", burst)
    records = nodes["a"].records(deployed["a"])
    flows = [r for r in records if r["t"] == "flow"]
    assert len(flows) == 200
    assert {r["user"] for r in flows} == {"asker"}
    assert all(r["process"] or r["why"] for r in flows), "what is not known has a reason"
    assert nodes["a"].records(deployed["a"])[0]["events"] <= 200


@ROUTER
@FAMILIES
def test_router_records_flows_and_denials_without_processes(
        nodes: dict[str, Node], deployed: dict[str, PointPlan], family: int) -> None:
    with nodes["a"].endpoint("asker", 20001, "ask", "tcp", B[family], "80") as said:
        flow = find(nodes["router"], deployed["router"], "tcp", said)
    assert flow["process"] is flow["user"] is flow["target_process"] is None
    with nodes["a"].endpoint("asker", 20001, "ask", "udp", B[family], "55") as said:
        deny = find(nodes["router"], deployed["router"], "udp", said, "deny")
    assert (deny["verdict"], deny["where"], deny["source"]) == ("deny", "forward", A[family])


@AGENTS
@FAMILIES
def test_agent_reports_what_it_denies_with_the_user(
        nodes: dict[str, Node], deployed: dict[str, PointPlan], family: int) -> None:
    with nodes["a"].endpoint("asker", 20001, "ask", "udp", B[family], "55") as said:
        assert said["outcome"] == "EPERM"
        deny = find(nodes["a"], deployed["a"], "udp", said, "deny")
    assert (deny["verdict"], deny["where"], deny["user"], deny["process"]) == ("deny", "out", "asker", "/run/bin/asker")


@ONE_AGENT
def test_target_drops_what_a_host_without_an_agent_sends(
        nodes: dict[str, Node], deployed: dict[str, PointPlan]) -> None:
    with nodes["a"].endpoint("asker", 20001, "ask", "tcp", B[4], "81") as said:
        assert said["outcome"] == "TIMED_OUT"
        records = nodes["b"].records(deployed["b"])
    denied = [r for r in records if r["t"] == "deny" and r["sport"] == said["sport"]]
    assert denied and {r["where"] for r in denied} == {"in"}
    assert denied[0]["target_process"] == "/run/bin/server"


@MONITOR
@FAMILIES
def test_monitor_mode_lets_everything_pass_and_says_what_it_would_deny(
        nodes: dict[str, Node], deployed: dict[str, PointPlan], family: int) -> None:
    where = next(iter(deployed))
    for proto, port in (("tcp", "81"), ("udp", "55")):
        with nodes["a"].endpoint("asker", 20001, "ask", proto, B[family], port) as said:
            assert said["outcome"] == "OPEN"
            record = find(nodes[where], deployed[where], proto, said, "deny")
        assert record["verdict"] == "would-deny"


@AGENTS
def test_ready_fails_when_the_table_is_gone_or_another(nodes: dict[str, Node], deployed: dict[str, PointPlan]) -> None:
    host, plan = nodes["a"], deployed["a"]
    host.run("nft", "delete", "table", "inet", "labctl_agent")
    done = host.run(*plan.ready, check=False)
    assert done.returncode == 1 and b"not in force" in done.stderr
    host.run("nft", "add", "table", "inet", "labctl_agent")
    assert host.run(*plan.ready, check=False).returncode == 1
    host.run(*plan.update[0])
    host.run(*plan.ready)


@AGENTS
def test_ready_fails_and_stop_works_when_the_daemon_was_killed(
        nodes: dict[str, Node], deployed: dict[str, PointPlan]) -> None:
    host, plan = nodes["a"], deployed["a"]
    pid = host.run("cat", "/run/host/agent/lock").stdout.decode().strip()
    host.run("sh", "-c", f"kill -9 {pid}")
    assert host.run(*plan.ready, check=False).returncode == 1
    assert host.ask("tcp", B[4], "81") != "OPEN", "the policy outlives the daemon"
    host.run(*plan.down[0])
    assert host.run("nft", "list", "ruleset").stdout == b""


def test_stop_leaves_nothing_and_repeats(nodes: dict[str, Node]) -> None:
    host, plan = nodes["a"], plans(AgentNft())["a"]
    before = state(host)
    host.place(plan)
    for _ in range(2):
        host.run(*plan.up[0])
        assert host.ask("tcp", B[4], "80") == "OPEN"
        for _ in range(2):
            host.run(*plan.down[0])
        assert state(host) == before
    files = host.run("ls", "-A", "/run/host/agent").stdout.decode().split()
    assert files == ["agent.pyz", "policy.json", "rules.nft"]
    host.run("nft", "add", "table", "inet", "somebody_else")
    host.run(*plan.up[0])
    host.run(*plan.down[0])
    assert b"somebody_else" in host.run("nft", "list", "tables").stdout
    host.run("nft", "delete", "table", "inet", "somebody_else")


def test_a_start_that_fails_says_why_and_leaves_nothing(nodes: dict[str, Node]) -> None:
    host, plan = nodes["a"], plans(AgentNft())["a"]
    before = state(host)
    host.place(plan)
    host.run("tee", "/run/host/agent/rules.nft", input=b"nonsense\n")
    done = host.run(*plan.up[0], check=False)
    assert done.returncode == 1 and done.stderr.startswith(b"agent start: nft: ") and done.stderr.count(b"\n") == 1
    assert state(host) == before


def state(host: Node) -> list[bytes]:
    shown = [["nft", "list", "ruleset"], ["sh", "-c", "cat /proc/sys/net/netfilter/nf_conntrack_[at]*"],
             ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'agent.p[y]z'"]]
    return [host.run(*argv, check=False).stdout for argv in shown]


@AGENTS
@FAMILIES
def test_update_cuts_an_open_connection_that_is_denied_now_and_no_other(
        nodes: dict[str, Node], deployed: dict[str, PointPlan], family: int) -> None:
    only_udp = Rule("udp", "allow", ASKS, SERVES, (Service("udp", 53, 53),))
    asker = nodes["a"]
    changed = plans(AgentNft(), policy(only_udp))["a"]
    with (asker.conversation("asker", 20001, "ask", "udp", B[family], "53") as kept,
          asker.conversation("asker", 20001, "ask", "udp", B[family], "54") as cut,
          asker.conversation("asker", 20001, "ask", "tcp", B[family], "80") as stream):
        for process in (kept, cut, stream):
            assert process.stdout and json.loads(process.stdout.readline())["outcome"] == "OPEN"
        asker.place(changed)
        asker.run(*changed.update[0])
        asker.run(*changed.ready)
        assert again(kept) == "OPEN"
        assert again(cut) in DENIED
        assert again(stream) != "OPEN"


@AGENTS
def test_a_broken_rule_set_changes_nothing(nodes: dict[str, Node], deployed: dict[str, PointPlan]) -> None:
    host, plan = nodes["a"], deployed["a"]
    rules = "/run/host/agent/rules.nft"
    good = plan.files[rules]
    host.run("tee", rules, input=good.replace(b"accept", b"axept"))
    done = host.run(*plan.update[0], check=False)
    assert done.returncode == 1 and b"nft:" in done.stderr and b"\n" not in done.stderr.strip()
    host.run("tee", rules, input=good)
    host.run(*plan.ready)
    assert host.ask("tcp", B[4], "80") == "OPEN"


@AGENTS
def test_header_tells_settings_and_losses(nodes: dict[str, Node], deployed: dict[str, PointPlan]) -> None:
    header = nodes["a"].records(deployed["a"])[0]
    settings = json.loads(json.dumps(header["settings"]))
    assert settings["nf_conntrack_acct"] == 1
    assert settings["nf_conntrack_tcp_timeout_time_wait"] == 10
    assert header["lost"] == {} and header["attributed"] is True


@AGENTS
def test_somebody_elses_command_is_refused(nodes: dict[str, Node], deployed: dict[str, PointPlan]) -> None:
    other = ("import os, socket; os.setuid(65534); s = socket.socket(socket.AF_UNIX); "
             "s.connect('/run/host/agent/sock')")
    assert b"PermissionError" in nodes["a"].run("/usr/bin/python3", "-c", other, check=False).stderr


def test_plans_are_for_the_points_that_exist() -> None:
    assert set(plans(AgentNft())) == {"a", "b"}
    assert set(plans(AgentNft(), left_agent=False)) == {"b"}
    assert {point("router").host} == set(plans(Chokepoint()))


@ONE_AGENT
def test_a_restart_replaces_the_rules_in_one_step_and_keeps_what_stands(
        nodes: dict[str, Node], deployed: dict[str, PointPlan]) -> None:
    """`nft monitor` says which changes of the table were one transaction: no moment without a table in between."""
    host, plan = nodes["b"], deployed["b"]
    with nodes["a"].conversation("asker", 20001, "ask", "tcp", B[4], "80") as asker, _changes(host) as changes:
        assert asker.stdout and json.loads(asker.stdout.readline())["outcome"] == "OPEN"
        host.run("sh", "-c", "kill -9 $(cat /run/host/agent/lock)")
        for command in plan.up:
            host.run(*command)
        host.run(*plan.ready)
        assert again(asker) == "OPEN", "an allowed connection outlives the agent's restart"
        together = [change for change in changes() if "delete table inet labctl_agent" in change]
        assert len(together) == 1 and "add table inet labctl_agent" in together[0]
    settings_before = host.run("cat", "/run/host/agent/before").stdout.decode()
    assert "nf_conntrack_tcp_timeout_time_wait 10\n" not in settings_before, "of the first start"


@ONE_AGENT
def test_a_start_that_fails_beside_standing_rules_leaves_them(
        nodes: dict[str, Node], deployed: dict[str, PointPlan]) -> None:
    host, plan = nodes["b"], deployed["b"]
    host.run("sh", "-c", "kill -9 $(cat /run/host/agent/lock); echo '{' > /run/host/agent/policy.json")
    failed = host.run(*plan.up[0], check=False)
    assert failed.returncode == 1 and b"policy.json" in failed.stderr
    assert nodes["a"].ask("tcp", B[4], "81") != "OPEN" and nodes["a"].ask("tcp", B[4], "80") == "OPEN"


@contextlib.contextmanager
def _changes(node: Node) -> Iterator[Callable[[], list[str]]]:
    """What becomes of the rules while it lasts: a function that ends the watch and returns a text a transaction."""
    with subprocess.Popen(node.argv(["nft", "monitor"]), stdout=subprocess.PIPE, text=True) as monitor:
        assert monitor.stdout
        until = time.monotonic() + 60
        while not select.select([monitor.stdout], [], [], 0.1)[0]:  # it watches from what it first tells on
            assert time.monotonic() < until
            node.run("nft", "add table inet begin; delete table inet begin")

        def ended() -> list[str]:
            node.run("nft", "add table inet end")
            lines = list(iter(monitor.stdout.readline, "add table inet end\n"))  # type: ignore[union-attr]
            node.run("nft", "delete table inet end")
            return "".join(lines).split("# new generation")

        try:
            yield ended
        finally:
            monitor.terminate()
