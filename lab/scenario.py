"""A scenario file in, a Scenario out; or every mistake in it at once, one line each.

The format is version 1: YAML, described field by field in `lab.schema`. `host: web` names all hosts of the entry `web`
in a selector, and the first of them as a foothold. The name of a process that listens stands for its services in a
rule. A rule without a name is called rule-N, counted from 1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from lab.model import Attack, Flow, Policy, Replay, Scenario, Service, Traffic
from lab.policy import decide
from lab.problems import Place, Problem, Report, ScenarioError, shown, suggest
from lab.scenario_policy import Selectors, build_policy
from lab.scenario_topology import Built, build_topology
from lab.schema import AttackDoc, Document, ReplayRow, TrafficDoc
from lab.schema_problems import shape
from lab.services import ServiceError, parse_service
from lab.yaml_text import MAX_BYTES, parse

__all__ = ["Problem", "ScenarioError", "load", "loads"]

_REPEATED = 20  # wrong rows of one recorded list that are shown one by one


def load(path: str | Path, arms: Collection[str] | None = None) -> Scenario:
    """The scenario in the file `path`. `arms`: the names that `arms:` may list; None: any. Raises ScenarioError."""
    path = Path(path)
    return loads(_read(path), str(path), arms)


def loads(text: str, name: str, arms: Collection[str] | None = None) -> Scenario:
    """The scenario in `text`, as if it stood in the file `name`, beside which the locustfile is looked for."""
    report = Report(name)
    shaped = shape(parse(text, report).data, report)
    built = build_topology(shaped, report)
    selectors = Selectors(built, report)
    policy = build_policy(selectors)
    path = Path(name).absolute()
    document = shaped.document
    attack = _attack(document.attack, selectors) if document.attack else None
    chosen = _arms(document.arms, arms, report)
    replay = tuple(_replay(built, report))
    traffic = _traffic(document.traffic, path.parent, selectors, policy) if document.traffic else None
    _tenants(built, document, report)
    report.stop_if_any()
    return Scenario(
        document.name, str(path), built.topology, policy, traffic, attack, chosen, document.seed, replay,
        tuple(document.invented), document.backend,
    )  # fmt: skip


def _read(path: Path) -> str:
    report = Report(str(path))
    try:
        if path.is_dir():
            report.stop("is a directory; name a scenario file in it")
        if path.exists() and not path.is_file():
            report.stop("is not a regular file; name a scenario file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as err:
        report.stop(f"cannot be read: {err.strerror}; name a scenario file")
    except ValueError:
        report.stop("cannot be a file's name; name a scenario file")
    if len(content) > MAX_BYTES:
        report.stop(f"has more than {MAX_BYTES >> 20} MiB; write a smaller scenario")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        report.stop(f"byte {content[err.start]:#04x} is not UTF-8; save the file as UTF-8", line)


# --- traffic, attack, arms --------------------------------------------------------------------


def _tenants(built: Built, document: Document, report: Report) -> None:
    """What is told apart by address alone, or needs a way out of the segment, is not to be had with tenants."""
    named = {segment.tenant: name for name, segment in built.topology.segments.items() if segment.tenant}
    if not named:
        return
    for part in ("traffic", "attack", "replay"):
        if getattr(document, part):
            report.add((part,), "goes by address, and tenants may have the same; leave it out, or leave tenants out")
    if document.backend == "docker":
        report.add(("backend",), "networks of one engine cannot overlap; write mininet, or leave tenants out")
    for tenant, name in named.items():
        if built.certain and sum(host.segment == name for host in built.topology.hosts.values()) < 2:
            report.add(("topology", "segments", name), f"tenant '{tenant}' has one host at most; give it two")


def _traffic(doc: TrafficDoc, directory: Path, selectors: Selectors, policy: Policy) -> Traffic | None:
    built, report = selectors.built, selectors.report
    clients = selectors.hosts(("traffic", "clients"), doc.clients)
    process = _traffic_process(doc, clients, built, report)
    stated = selectors.hosts(("traffic", "to"), doc.to) if doc.to is not None else None
    locustfile = _locustfile(doc.locustfile, directory, report)
    if report.problems or process is None:  # what is wrong may be the policy: nothing can be derived from it
        return None
    targets = stated if stated is not None else _allowed_targets(clients, process, built, policy)
    if not targets:
        report.add(("traffic",), f"the policy lets '{process}' reach no tcp service; allow one, or write to: …")
    return Traffic(clients, process, locustfile, doc.rate, targets)


def _traffic_process(doc: TrafficDoc, clients: tuple[str, ...], built: Built, report: Report) -> str | None:
    """The process that makes the traffic: as stated, or the first that all clients run."""
    hosts, place = built.topology.hosts, ("traffic", "process")
    if not clients or not built.certain:
        return None
    common = [name for name in hosts[clients[0]].runs if all(name in hosts[client].runs for client in clients)]
    if doc.process is None:
        if not common:
            report.add(place, "the clients have no process in common; give them one under runs")
        return common[0] if common else None
    if doc.process not in built.topology.processes:
        remedy = suggest(doc.process, common, "what all clients run")
        report.add(place, f"there is no process {shown(doc.process)}; {remedy}")
    elif doc.process not in common:
        without = next(client for client in clients if doc.process not in hosts[client].runs)
        report.add(place, f"client '{without}' does not run '{doc.process}'; write it under runs there")
    elif pod := next((client for client in clients if hosts[client].pod), None):
        report.add(place, f"client '{pod}' is a pod, and locust runs on a host that is none; leave out pod there")
    elif (made := built.topology.processes[doc.process]).interpreter or made.sha256:
        report.add(place, f"locust takes the place of '{doc.process}'; leave interpreter, content and sha256 out there")
    return doc.process


def _locustfile(text: str, directory: Path, report: Report) -> str:
    place = ("traffic", "locustfile")
    if not text.endswith(".py") or not text.isprintable() or len(text) > 255:
        report.add(place, f"{shown(text)} is not a Python file's name; write one such as shop.py")
    elif not (directory / text).is_file():
        report.add(place, f"there is no file {shown(text)} beside the scenario; write its path from there")
    return str((directory / text).absolute()) if text.isprintable() else ""


def _allowed_targets(clients: tuple[str, ...], process: str, built: Built, policy: Policy) -> tuple[str, ...]:
    """The hosts of which every client may reach some declared tcp port over IPv4."""
    topology = built.topology
    user = topology.processes[process].user

    def open_to(client: str, target: str) -> bool:
        for name in topology.hosts[target].runs:
            for service in topology.processes[name].listens:
                flow = Flow(client, process, user, target, name, "tcp", service.low, 4)
                if service.proto == "tcp" and decide(policy, flow, topology).allow:
                    return True
        return False

    return tuple(t for t in topology.hosts if t not in clients and all(open_to(client, t) for client in clients))


def _attack(doc: AttackDoc, selectors: Selectors) -> Attack | None:
    built, report = selectors.built, selectors.report
    place = ("attack", "foothold")
    goals = selectors.hosts(("attack", "goal"), doc.goal)
    hosts = built.topology.hosts
    host = built.entries.get(doc.foothold.host, (doc.foothold.host,))[0]
    if not built.certain:
        return None
    if host not in hosts:
        remedy = suggest(doc.foothold.host, [*built.entries, *hosts], "hosts")
        report.add((*place, "host"), f"there is no host {shown(doc.foothold.host)}; {remedy}")
        return None
    if doc.foothold.process not in hosts[host].runs:
        remedy = suggest(doc.foothold.process, hosts[host].runs, "processes there")
        report.add((*place, "process"), f"'{host}' does not run {shown(doc.foothold.process)}; {remedy}")
    if goals == (host,):
        report.add(("attack", "goal"), f"'{host}' is the foothold itself; choose another goal")
    return Attack(host, doc.foothold.process, tuple(goal for goal in goals if goal != host))


def _arms(stated: list[str] | None, known: Collection[str] | None, report: Report) -> tuple[str, ...]:
    """The arms to compare: as stated; else all that are known; else the baseline alone."""
    if stated is None:
        return tuple(known or ("none",))
    for index, arm in enumerate(stated):
        if known is not None and arm not in known:
            report.add(("arms", index), f"there is no arm {shown(arm)}; {suggest(arm, known, 'arms')}")
        elif arm in stated[:index]:
            report.add(("arms", index), f"{shown(arm)} is there twice; keep one")
    return tuple(stated)


# --- recorded traffic -------------------------------------------------------------------------


def _replay(built: Built, report: Report) -> Iterator[Replay]:
    """Recorded flows, over IPv4: from the client's first process to the process of the server that has the port."""
    doc = built.shaped.document.replay
    if doc is None or not built.certain:
        return
    for key, rows in (("foreseen", doc.foreseen), ("unforeseen", doc.unforeseen)):
        wrong = 0
        for index, row in enumerate(rows):
            flow = _recorded(row, built)
            if isinstance(flow, Flow):
                yield Replay(flow, row[3], key == "foreseen")
                continue
            wrong += 1
            place: Place = ("replay", key, index)
            if wrong > _REPEATED:
                report.add(place, "this row and maybe more are wrong too; mend those above first")
                break
            report.add(place, flow)


def _recorded(row: ReplayRow, built: Built) -> Flow | str:
    """The flow of one row, or what is wrong with it."""
    source, target, text, _count = row
    hosts, processes = built.topology.hosts, built.topology.processes
    for name in (source, target):
        if name not in hosts:
            return f"there is no host {shown(name)}; {suggest(name, hosts, 'hosts')}"
    try:
        service = parse_service(text)
    except ServiceError as err:
        return str(err).replace(" or name it under processes", "")
    if service.proto not in ("tcp", "udp") or service.low != service.high:
        return f"{shown(text)} is not one port; write one such as 80/tcp"
    if not hosts[source].runs:
        return f"'{source}' runs nothing that could ask; write a process under its runs"
    owner = next((name for name in hosts[target].runs if _listens(processes[name].listens, service)), None)
    if owner is None:
        return f"nothing on '{target}' listens on {text}; write it under listens of a process there"
    client = processes[hosts[source].runs[0]]
    return Flow(source, client.name, client.user, target, owner, service.proto, service.low, 4)


def _listens(listens: tuple[Service, ...], wanted: Service) -> bool:
    return any(s.proto == wanted.proto and s.low <= wanted.low <= s.high for s in listens)
