"""From the document to the topology: processes with users, hosts expanded by count, addresses. Pure.

What is wrong goes to the report and is left out, so that the rest of the document can be checked as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise

from lab import addresses
from lab.model import ORIGINAL, REWRITTEN, Host, Process, Service, Topology
from lab.policy import NOBODY, NOBODY_UID, WRONG_PORTS
from lab.problems import Place, Report, shown, suggest
from lab.schema import Document, HostDoc, ProcessDoc
from lab.schema_problems import Shaped
from lab.services import ServiceError, parse_service, service_text

FIRST_UID = 20000
MAX_HOSTS = 4096
MAX_PORTS = 4096  # ports that one process may listen on
ROUTER = "router"


@dataclass(frozen=True, slots=True)
class Built:
    """The topology of `shaped`. `entries`: the full names of the hosts of each entry in the file.

    `certain`: nothing was wrong, so that what is not there is missing and was not merely left out.
    """

    shaped: Shaped
    topology: Topology
    entries: Mapping[str, tuple[str, ...]]
    certain: bool


def build_topology(shaped: Shaped, report: Report) -> Built:
    """The topology of the document, as far as it is right."""
    document, before = shaped.document, len(report.problems)
    users = _uids(document.processes)
    processes = _processes(shaped, users, report)
    segments = addresses.segments(document.topology.segments, report) or {}
    entries = {name: _expanded(name, doc.count) for name, doc in document.topology.hosts.items()}
    if sum(map(len, entries.values())) > MAX_HOSTS:
        report.stop_at(("topology", "hosts"), f"more than {MAX_HOSTS} hosts; write smaller counts")
    _check_names(entries, report)
    _check_containers(document, report)
    docs = {full: (name, document.topology.hosts[name]) for name, fulls in entries.items() for full in fulls}
    _check_segments(shaped, report)
    runs = {name: _runs(name, doc, shaped, processes, report) for name, doc in document.topology.hosts.items()}
    placed = {full: (name, doc) for full, (name, doc) in docs.items() if doc.segment in segments}
    plan = addresses.host_addresses(placed, segments, report)
    hosts = {
        full: _host(full, number, doc, runs[name], plan.get(full, ("0.0.0.0", "::")))
        for number, (full, (name, doc)) in enumerate(docs.items())
    }
    certain = len(report.problems) == before and shaped.whole("topology") and shaped.whole("processes")
    return Built(shaped, Topology(segments, hosts, processes, users, ROUTER), entries, certain)


def _host(name: str, number: int, doc: HostDoc, runs: tuple[str, ...], address: tuple[str, str]) -> Host:
    v4, v6 = address
    return Host(name, doc.segment, v4, v6, addresses.mac(number), dict(doc.labels), runs, doc.agent, doc.external,
                doc.image, doc.pod)


def _expanded(name: str, count: int | None) -> tuple[str, ...]:
    return (name,) if count is None else tuple(f"{name}-{number}" for number in range(1, count + 1))


def _check_names(entries: Mapping[str, tuple[str, ...]], report: Report) -> None:
    if not entries:
        report.add(("topology", "hosts"), "there are no hosts; write at least one")
    owner: dict[str, str] = {}
    for name, fulls in entries.items():
        place = ("topology", "hosts", name)
        if ROUTER in fulls:
            report.add(place, f"'{ROUTER}' is the name of the router between the segments; write another")
        taken = next((full for full in fulls if full in owner), None)
        if taken is not None:
            report.add(place, f"its host '{taken}' has the name of one of '{owner[taken]}'; write another name")
        owner.update(dict.fromkeys(fulls, name))


def _check_containers(document: Document, report: Report) -> None:
    """What only containers can have, and what pods cannot."""
    for name, host in document.topology.hosts.items():
        place = ("topology", "hosts", name)
        if host.pod and host.image is not None:
            report.add((*place, "image"), "the images of a pod are those of its processes; write it there")
        for index, runs in enumerate(host.runs):
            process = document.processes.get(runs)
            if process is None:
                continue
            if process.image is not None and not host.pod:
                report.add((*place, "runs", index), f"'{runs}' has an image of its own, which only a process of a pod "
                                                    "has; write pod: true, or the image under the host")
            if process.interpreter is not None and host.pod:
                report.add((*place, "runs", index), f"'{runs}' is a script, and an agent beside a pod's containers "
                                                    "does not see their files; run it on a host that is no pod")
    if document.backend == "docker":
        return
    remedy = "only a container has that; write backend: docker"
    for name, process in document.processes.items():
        if process.command is not None:
            report.add(("processes", name, "command"), remedy)
        if process.image is not None:
            report.add(("processes", name, "image"), remedy)
    for name, host in document.topology.hosts.items():
        if host.image is not None:
            report.add(("topology", "hosts", name, "image"), remedy)


def _check_segments(shaped: Shaped, report: Report) -> None:
    known = shaped.document.topology.segments
    for name, doc in shaped.document.topology.hosts.items():
        place = ("topology", "hosts", name)
        if doc.segment not in known and not shaped.may_have(doc.segment, "topology", "segments"):
            remedy = suggest(doc.segment, known, "segments")
            report.add((*place, "segment"), f"there is no segment {shown(doc.segment)}; {remedy}")
        if doc.external and doc.labels:
            report.add((*place, "labels"), "an external host has no labels; leave them out, select it by host or cidr")


# --- processes --------------------------------------------------------------------------------


def _uids(docs: Mapping[str, ProcessDoc]) -> dict[str, int]:
    """uids from 20000 in order of first appearance; `nobody` is always there."""
    named = [user for user in dict.fromkeys(doc.user for doc in docs.values()) if user != NOBODY]
    return {**{user: FIRST_UID + number for number, user in enumerate(named)}, NOBODY: NOBODY_UID}


def _processes(shaped: Shaped, users: Mapping[str, int], report: Report) -> dict[str, Process]:
    docs = shaped.document.processes
    if len(docs) >= len(WRONG_PORTS):
        report.stop_at(("processes",), f"{len(docs)} processes; write at most {len(WRONG_PORTS) - 1}")
    result = {name: _process(name, doc, users, report) for name, doc in docs.items()}
    _check_calls(shaped, result, report)
    _check_paths(result, report)
    return result


def _process(name: str, doc: ProcessDoc, users: Mapping[str, int], report: Report) -> Process:
    listens = tuple(_listens(doc.listens, ("processes", name, "listens"), report))
    calls = tuple(doc.calls)
    place = ("processes", name)
    if doc.command is not None and doc.vulnerable:
        report.add((*place, "vulnerable"), "a real program has no weakness that labctl knows; leave it out")
    if doc.command is None and doc.environment:
        report.add((*place, "environment"), "only a command has an environment; write a command too, or leave it out")
    for key, remedy in _contradictions(doc):
        report.add((*place, key), remedy)
    command = None if doc.command is None else tuple(doc.command)
    content = {"any": doc.sha256, "original": ORIGINAL, "rewritten": REWRITTEN}[doc.content]
    return Process(name, doc.exe, doc.user, users[doc.user], listens, calls, doc.vulnerable, content, command,
                   dict(doc.environment), doc.interpreter, doc.poses_as, doc.image)


def _contradictions(doc: ProcessDoc) -> Iterator[tuple[str, str]]:
    """Keys that others rule out, each with the remedy."""
    for key, given in (("interpreter", doc.interpreter), ("poses_as", doc.poses_as)):
        if given is not None and doc.command is not None:
            yield key, "a command says itself what runs; leave one of the two out"
    if doc.content != "any" and doc.command is not None:
        yield "content", "only labctl's own service can be told so; give the command's executable a sha256"
    elif doc.content != "any" and doc.sha256 is not None:
        yield "content", "sha256 says it already; leave one of the two out"
    elif doc.interpreter is not None and (doc.content != "any" or doc.sha256 is not None):
        yield ("content" if doc.content != "any" else "sha256",
               "a script is known by its path alone, since its interpreter reads it when it likes; leave it out")


def _listens(texts: Iterable[str], place: Place, report: Report) -> Iterator[Service]:
    ports, seen = 0, set()
    for index, text in enumerate(texts):
        try:
            service = parse_service(text)
        except ServiceError as err:
            report.add((*place, index), str(err).replace(" or name it under processes", ""))
            continue
        if service.proto not in ("tcp", "udp"):
            report.add((*place, index), f"a process listens on ports, not on {text}; write 80/tcp or 53/udp")
        elif service.high >= WRONG_PORTS[0]:
            report.add((*place, index), f"ports from {WRONG_PORTS[0]} up are the probe's own; write a lower one")
        elif service in seen:
            report.add((*place, index), f"{text} is there twice; keep one")
        else:
            seen.add(service)
            ports += service.high - service.low + 1
            yield service
    if ports > MAX_PORTS:
        report.add(place, f"{ports} ports; write at most {MAX_PORTS}")


def _check_calls(shaped: Shaped, processes: Mapping[str, Process], report: Report) -> None:
    runnable = {name for doc in shaped.document.topology.hosts.values() for name in doc.runs}
    for process in processes.values():
        for index, callee in enumerate(process.calls):
            place = ("processes", process.name, "calls", index)
            if shaped.may_have(callee, "processes"):
                continue
            if callee not in processes:
                report.add(place, f"there is no process {shown(callee)}; {suggest(callee, processes, 'processes')}")
            elif not any(service.proto == "tcp" for service in processes[callee].listens):
                report.add(place, f"'{callee}' listens on no tcp port; give it one, such as listens: [8080/tcp]")
            elif callee not in runnable and shaped.whole("topology", "hosts"):
                report.add(place, f"'{callee}' runs on no host; write it under runs of one")
    for loop in _loops(processes):
        report.add(("processes", loop[0], "calls"), f"calls go in a circle: {' → '.join(loop)}; leave one out")


def _loops(processes: Mapping[str, Process]) -> Iterator[tuple[str, ...]]:
    """One circle of calls for each process that is the first in the file of a circle."""
    order = {name: number for number, name in enumerate(processes)}
    for start in processes:
        trail: dict[str, str] = {}  # process: who calls it
        waiting = [start]
        while waiting:
            caller = waiting.pop()
            for callee in processes[caller].calls:
                if callee == start:
                    yield tuple(reversed([start, *_back(caller, start, trail), start]))
                    waiting.clear()
                    break
                if callee in order and order[callee] > order[start] and callee not in trail:
                    trail[callee] = caller
                    waiting.append(callee)


def _back(name: str, start: str, trail: Mapping[str, str]) -> Iterator[str]:
    while name != start:
        yield name
        name = trail[name]


def _check_paths(processes: Mapping[str, Process], report: Report) -> None:
    """A path cannot be both a program and a directory of programs."""
    by_path = {process.path + "/": process.name for process in processes.values()}
    for first, second in pairwise(sorted(by_path)):
        if second.startswith(first):
            report.add(
                ("processes", by_path[second], "exe"),
                f"{shown(second[:-1])} lies under the program '{by_path[first]}'; write another path",
            )


# --- what runs where --------------------------------------------------------------------------


def _runs(name: str, doc: HostDoc, shaped: Shaped, processes: Mapping[str, Process], report: Report) -> tuple[str, ...]:
    place, found = ("topology", "hosts", name, "runs"), []
    for index, process in enumerate(doc.runs):
        if process in found:
            report.add((*place, index), f"{shown(process)} is there twice; a host runs a process once")
        elif process in processes:
            found.append(process)
        elif not shaped.may_have(process, "processes"):
            remedy = suggest(process, processes, "processes")
            report.add((*place, index), f"there is no process {shown(process)}; {remedy}")
    for index, process in enumerate(found):
        if processes[process].command == () and doc.image is None and processes[process].image is None:
            report.add((*place, index), f"'{process}' is what its image starts, and '{name}' has no image; write one")
    for one, other in combinations(found, 2):
        first, second = processes[one], processes[other]
        if doc.pod and first.path == second.path:
            report.add(place, f"'{one}' and '{other}' have one path, by which a pod's containers are told apart; give "
                              "one of them another")
        if first.path == second.path and (first.sha256, first.interpreter) != (second.sha256, second.interpreter):
            report.add(place, f"'{one}' and '{other}' have one path but are different files; run them apart")
        both = _both(processes[one], processes[other])
        if both is not None:
            report.add(place, f"'{one}' and '{other}' both listen on {both}; give one of them another port or host")
    return tuple(found)


def _both(one: Process, other: Process) -> str | None:
    """What both processes would listen on, if anything."""
    for a in one.listens:
        for b in other.listens:
            if a.proto == b.proto and a.low <= b.high and b.low <= a.high:
                return service_text(Service(a.proto, max(a.low, b.low), min(a.high, b.high)))
    return None
