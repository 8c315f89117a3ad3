"""A scenario as a tree on a terminal: segments, hosts, processes, then the policy in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from bench.report.groups import Group, by_labels, singles
from bench.report.words import numbered, rule_text, services_text, some
from lab.model import Host, Process, Scenario, Topology

ONE_BY_ONE = 24  # hosts that are shown singly; of more, those with the same labels share a line
MOST_GROUPS, MOST_RULES = 12, 20  # of a segment; of the policy: the file has them all
MOST_PROCESSES = 4


def tree(scenario: Scenario, question: str = "", *, everything: bool = False) -> Tree:
    """The tree. Unless `everything`, what is large is summed up, and says so."""
    topology, policy = scenario.topology, scenario.policy
    size = ", ".join((numbered(len(topology.segments), "segment"), numbered(len(topology.hosts), "host"),
                      numbered(len(policy.rules), "rule")))
    root = Tree(f"[bold]{escape(scenario.name)}[/bold]: {size}", guide_style="dim")
    if question:
        root.add(f"[italic]{escape(question)}[/italic]")
    singly = everything or len(topology.hosts) <= ONE_BY_ONE
    shown = singles(scenario) if singly else by_labels(scenario)
    for segment in topology.segments.values():
        here = [group for group in shown if group.segment == segment.name]
        size = numbered(sum(len(group.hosts) for group in here), "host")
        branch = root.add(f"segment [bold cyan]{escape(segment.name)}[/bold cyan] "
                          f"[dim]{segment.v4} {segment.v6}[/dim]{'' if singly else f', {size}'}")
        for group in here if singly else here[:MOST_GROUPS]:
            node = branch.add(_title(group))
            if singly:
                _processes(node, group.hosts[0], topology, everything)
            else:
                node.label = f"{node.label}: {_offers(group, topology)}"
        left = 0 if singly else sum(len(group.hosts) for group in here[MOST_GROUPS:])
        if left:
            branch.add(f"[dim]and {numbered(left, 'host')} more; --all shows them[/dim]")
    _policy(root, scenario, everything)
    _rest(root, scenario)
    return root


def as_data(scenario: Scenario, question: str = "") -> dict[str, Any]:
    """The same for programs: segments with hosts and processes, and rules in words; nothing left out."""
    topology = scenario.topology
    return {
        "name": scenario.name, "path": scenario.path, "question": question, "seed": scenario.seed,
        "arms": list(scenario.arms),
        "segments": [{
            "name": segment.name, "v4": segment.v4, "v6": segment.v6,
            "hosts": [{"name": host.name, "v4": host.v4, "v6": host.v6, "labels": dict(host.labels),
                       "agent": host.takes_agent, "external": host.external,
                       "processes": [_process_data(topology.processes[name]) for name in host.runs]}
                      for host in topology.hosts.values() if host.segment == segment.name]}
            for segment in topology.segments.values()],
        "policy": {"default": scenario.policy.default, "loopback": scenario.policy.loopback,
                   "rules": [{"name": rule.name, "says": rule_text(rule)} for rule in scenario.policy.rules]},
        "traffic": None if scenario.traffic is None else {
            "clients": list(scenario.traffic.clients), "process": scenario.traffic.process,
            "rate": scenario.traffic.rate, "targets": list(scenario.traffic.target_hosts)},
        "attack": None if scenario.attack is None else {
            "foothold": scenario.attack.foothold_host, "process": scenario.attack.foothold_process,
            "goals": list(scenario.attack.goals)},
    }


def _title(group: Group) -> str:
    host, marks = group.hosts[0], []
    for mark in dict.fromkeys(group.marks.values()):
        who = "" if len(group.hosts) == 1 else " " + escape(some([k for k, v in group.marks.items() if v == mark], 3))
        marks.append(f"[{'red' if mark == 'foothold' else 'magenta'}]{mark}{who}[/]")
    if len(group.hosts) == 1:
        parts = [f"[bold]{escape(host.name)}[/bold] [dim]{host.v4}[/dim]", escape(_labels(group.labels))]
    else:
        names = some((h.name for h in group.hosts), 3)
        parts = [escape(_labels(group.labels)), f"[bold]{len(group.hosts)} hosts[/bold] [dim]({escape(names)})[/dim]"]
    without = sum(not h.takes_agent and not h.external for h in group.hosts)
    outside = sum(h.external for h in group.hosts)
    parts += [f"[yellow]no agent possible{_of(without, group)}[/yellow]"] if without else []
    parts += [f"[yellow]external{_of(outside, group)}[/yellow]"] if outside else []
    return " ".join(part for part in [*parts, *marks] if part)


def _of(n: int, group: Group) -> str:
    return "" if n == len(group.hosts) else f" on {n}"


def _offers(group: Group, topology: Topology) -> str:
    """What many hosts run, in numbers."""
    runs = {name: topology.processes[name] for host in group.hosts for name in host.runs}
    services = dict.fromkeys(service for process in runs.values() for service in process.listens)
    weak = sum(any(topology.processes[name].vulnerable for name in host.runs) for host in group.hosts)
    listening = f"listening on {escape(services_text(services, 4))}" if services else "listening on nothing"
    return f"{numbered(len(runs), 'process')} {listening}" + (f" [red]{weak} vulnerable[/red]" if weak else "")


def _processes(node: Tree, host: Host, topology: Topology, everything: bool) -> None:
    runs = [topology.processes[name] for name in host.runs]
    for process in runs if everything else runs[:MOST_PROCESSES]:
        node.add(_process(process))
    if len(runs) > MOST_PROCESSES and not everything:
        node.add(f"[dim]and {numbered(len(runs) - MOST_PROCESSES, 'process')} more; --all shows them[/dim]")


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in labels.items()) + "}" if labels else ""


def _process(process: Process) -> str:
    listens = f" listens on {services_text(process.listens)}" if process.listens else ""
    calls = f" calls {', '.join(process.calls)}" if process.calls else ""
    weak = " [red]vulnerable[/red]" if process.vulnerable else ""
    return (f"{escape(process.name)} [dim]{escape(process.path)} as {escape(process.user)}[/dim]"
            f"{escape(listens)}{escape(calls)}{weak}")


def _policy(root: Tree, scenario: Scenario, everything: bool) -> None:
    policy = scenario.policy
    branch = root.add(f"policy: [bold]{policy.default}[/bold] unless a rule says otherwise; a deny overrides an allow")
    shown = policy.rules if everything else policy.rules[:MOST_RULES]
    for rule in shown:
        colour = "green" if rule.verdict == "allow" else "red"
        words = escape(rule_text(rule)).removeprefix(rule.verdict)
        branch.add(f"[{colour}]{rule.verdict}[/{colour}]{words} [dim]({escape(rule.name)})[/dim]")
    if len(policy.rules) > len(shown):
        branch.add(f"[dim]and {numbered(len(policy.rules) - len(shown), 'rule')} more; --all shows them[/dim]")


def _rest(root: Tree, scenario: Scenario) -> None:
    traffic, attack = scenario.traffic, scenario.attack
    if traffic is not None:
        root.add(f"traffic: {escape(traffic.process)} on {escape(some(traffic.clients, 4))}, {traffic.rate:g} "
                 f"requests/s to {escape(some(traffic.target_hosts, 4))}")
    if attack is not None:
        root.add(f"attack: from [red]{escape(attack.foothold_host)}/{escape(attack.foothold_process)}[/red] "
                 f"to [magenta]{escape(some(attack.goals, 4))}[/magenta]")
    if scenario.replay:
        seen = sum(one.foreseen for one in scenario.replay)
        root.add(f"recorded traffic: {numbered(seen, 'flow')} foreseen, "
                 f"{numbered(len(scenario.replay) - seen, 'flow')} that came later")
    root.add(f"arms: {escape(', '.join(scenario.arms))}; seed {scenario.seed}")


def _process_data(process: Process) -> dict[str, Any]:
    return {"name": process.name, "exe": process.path, "user": process.user, "vulnerable": process.vulnerable,
            "listens": _texts(process), "calls": list(process.calls)}


def _texts(process: Process) -> list[str]:
    return [services_text([service]) for service in process.listens]
