"""One small run of the real thing on a standing lab: the experiment and the assembly of `labctl run`, no copies."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import assemble
from bench.experiment import BASELINE, Collected, Options, Say, execute
from bench.instruments.datapath import Design
from bench.report.summary import Arm, FigureName, Summary
from bench.selection import Selection, select
from bench.store import ResultStore
from lab.backends.base import Enforcement, Testbed
from lab.hosts.attempts import Actor
from lab.model import Enforcer, Flow, Scenario
from lab.policy_sets import Oracle

Make = Callable[[str], Enforcer]
_FIRST = ("sh", "-c", "for p in /proc/[0-9]*; do chrt -f -p 1 ${p#/proc/} || true; done")
LOOPS = Design(crr=8, rr=8, warmup=1, window_s=0.04)
BULK = Design(crr=2, rr=2, warmup=0, window_s=0.02)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one small run collected, and the summary that was made of it."""

    collected: Collected
    summary: Summary

    def arm(self, name: str) -> Arm:
        return self.summary.arms[name]

    def blocks(self, name: str, figure: FigureName) -> list[float | None]:
        """One value a block, as measured: a wait by the clock is as long on a slow machine as on a fast one."""
        return assemble.costs_of(self.collected).raw(name, figure)

    def planted(self, name: str) -> dict[str, Any]:
        """What the liar says it really planted until its telemetry was collected."""
        for note in self.collected.records[name].notes:
            header = json.loads(note.partition(": ")[2])
            if "planted" in header:
                return dict(header)
        return {}


class Lab:
    """A standing lab on which plants are measured one after the other. `make` gives an enforcer by its arm's name."""

    def __init__(self, scenario: Scenario, testbed: Testbed, make: Make, store: Path, say: Say) -> None:
        self.scenario, self.testbed, self.make, self.say = scenario, testbed, make, say
        self.selection: Selection = select(scenario)
        self._store, self._count = store, 0
        verdicts = Oracle(scenario.policy, scenario.topology).verdicts(self.selection.flows)
        self.intended: Mapping[Flow, bool] = {f: v.allow for f, v in
                                              zip(self.selection.flows, verdicts, strict=True)}

    def measure(self, *arms: str, blocks: int = 0, shuffled: bool = True, bulk: bool = False,
                before_block: Callable[[], object] | None = None) -> Measured:
        """`none` and these arms: matrix, telemetry, and so many cost blocks, with `bulk` or without."""
        options = Options(blocks=blocks, quick=True, shuffled=shuffled, extras_every=int(bulk),
                          design=BULK if bulk else LOOPS, spoofing=False)
        enforcers = {name: self.make(name) for name in (BASELINE, *arms)}
        collected = Collected(self.scenario, options, self.selection, enforcers)
        self._count += 1
        with ResultStore(self._store / f"{self._count}-{'-'.join(arms) or BASELINE}") as store:
            execute(collected, self.testbed, None, store, self._each_block(before_block))
            if collected.interrupted:  # the experiment keeps what it has; a self-test ends
                raise KeyboardInterrupt
            found = assemble.summary(collected)
        return Measured(collected, found)

    def _each_block(self, act: Callable[[], object] | None) -> Say:
        """Progress as it is told, and `act` when it tells of a block that it had not yet."""
        begun: set[str] = set()

        def say(text: str) -> None:
            self.say(text)
            block = text.partition(":")[0]
            if act and block.startswith("block ") and block not in begun:
                begun.add(block)
                act()
        return say

    def crossing(self, wanted: Callable[[Flow], bool]) -> list[Flow]:
        """The flows between segments (the router's) that are `wanted`."""
        hosts = self.scenario.topology.hosts
        return [f for f in self.selection.flows
                if hosts[f.source].segment != hosts[f.target].segment and wanted(f)]

    def alone(self, *hosts: str) -> None:
        """From now on nothing else on this machine preempts what runs on these hosts (SCHED_FIFO)."""
        for host in hosts:
            done = self.testbed.run(host, _FIRST)
            if done.status:
                raise OSError(f"{host}: chrt: {done.stderr.decode(errors='replace').strip()[:100]}")

    @contextlib.contextmanager
    def dead(self, host: str, process: str) -> Iterator[None]:
        """The listeners of a process are closed meanwhile."""
        declared = self.scenario.topology.processes[process]
        actor = Actor(host, process, declared.user)
        ports = [(s.proto, str(port)) for s in declared.listens for port in range(s.low, s.high + 1)]
        for proto, port in ports:
            self.testbed.services.request(actor, "unlisten", proto, port)
        try:
            yield
        finally:
            for proto, port in ports:
                self.testbed.services.request(actor, "listen", proto, port)

    @contextlib.contextmanager
    def under(self, name: str) -> Iterator[Enforcement]:
        """An enforcer that is no arm is in place meanwhile, under every arm: the weather."""
        place = self.place(name)
        place.up()
        try:
            yield place
        finally:
            place.down()

    def place(self, name: str) -> Enforcement:
        """An enforcer that is no arm, deployed and taken away again: `up` and `down` replay it."""
        enforcer, topology = self.make(name), self.scenario.topology
        native = enforcer.compile(self.scenario.policy, topology)
        place = self.testbed.enforcement(name, lambda flow: enforcer.covers(flow, topology))
        place.install(native, enforcer.render(native, topology))
        place.down()
        return place
