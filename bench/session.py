"""One `labctl run`, from the loaded scenario to the exit status: isolation, progress, storing, printing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench import assemble, environment, honest, registry, testbeds
from bench.contract import EnforcerError
from bench.experiment import (
    QUICK_TRAFFIC_S,
    REPLAY_LIMIT,
    TRAFFIC_S,
    Collected,
    Options,
    Say,
    execute,
)
from bench.instruments.datapath import InstrumentError
from bench.instruments.onhost import ProgramError
from bench.instruments.traffic import TrafficError
from bench.instruments.wire import WireError
from bench.report import terminal
from bench.report.console import console
from bench.report.progress import Progress, Step, steps
from bench.report.summary import Summary, to_json
from bench.selection import select
from bench.store import ResultStore
from lab.backends.docker_engine import Engine, EngineError
from lab.backends.served import LabDownError
from lab.deploy.enforcement import DeployError
from lab.hosts.build import BuildError, build
from lab.hosts.control import ServiceError
from lab.hosts.roles import actors
from lab.isolation import RunIdentity, finishing, heed_interrupt, run_isolated
from lab.model import Scenario
from lab.users import one_user


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that came to its end, saved in `directory`."""

    collected: Collected
    summary: Summary
    directory: Path


Finish = Callable[[Finished], int]  # what to do with it; returns the exit status


def show(finished: Finished) -> int:
    """Print the comparison, or the summary alone."""
    if finished.collected.options.as_json:
        print(to_json(finished.summary), end="")
    else:
        terminal.show(finished.summary, console())
        print(f"\nsaved in {shown(finished.directory)}")
    return assemble.exit_status(finished.summary)


def run_scenario(scenario: Scenario, options: Options, finish: Finish = show) -> int:
    """Run and report. Exit status as documented: 0, 1 (defect), 2 (an arm's code fails), 3 (machine), 4, 130.

    `finish` is called inside the run's namespaces, when the lab is gone and the results are saved.
    """
    if options.seed is not None:
        scenario = replace(scenario, seed=options.seed)
    try:
        ground = Ground(build(), testbeds.prepare(scenario.backend))
    except BuildError as err:
        print(err, file=sys.stderr)
        return 3
    except EngineError as err:
        print(f"labctl: {err}", file=sys.stderr)
        return 3
    return run_isolated(lambda me: _measured(scenario, options, ground, me, finish), "run", scenario.name)


@dataclass(frozen=True, slots=True)
class Ground:
    """What a lab stands on: the compiled service, and the engine of containers if it needs one."""

    labhost: Path
    engine: Engine | None


def _measured(scenario: Scenario, options: Options, ground: Ground, me: RunIdentity, finish: Finish) -> int:
    try:
        return _inside(scenario, options, ground, me, finish)
    except EnforcerError as err:
        print(f"labctl: {err}", file=sys.stderr)
        return 2


def _inside(scenario: Scenario, options: Options, ground: Ground, me: RunIdentity, finish: Finish) -> int:
    if not me.several_users:
        scenario = replace(scenario, topology=one_user(scenario.topology))
    scenario = testbeds.with_contents(scenario, ground.labhost)
    names = options.arms or tuple(dict.fromkeys(("none", *scenario.arms)))
    with ResultStore.create(options.results, scenario.name) as store, Progress() as say:
        collected = Collected(scenario, options, select(scenario), {name: registry.load(name) for name in names})
        say.expect(_plan(collected))
        collected.environment = {"run": me.run_id, "backend": scenario.backend, "several_users": me.several_users,
                                 "cgroup2": me.cgroup is not None, **environment.facts()}
        store.document("environment.json", collected.environment)
        _store_scenario(scenario, store)
        try:
            _on_testbed(collected, ground, me, store, say)
        except KeyboardInterrupt:
            collected.interrupted = True
        except (LabDownError, DeployError, InstrumentError, TrafficError, ServiceError, ProgramError,
                WireError, OSError) as err:
            print(f"labctl: {err}", file=sys.stderr)
            collected.invalid.append(f"the run ended early: {err}")
            if collected.records:  # what was measured until then is kept, and marked
                store.document("summary.json", to_json(assemble.summary(collected)))
            return 3
        with finishing():
            summary = assemble.summary(collected)
            store.document("summary.json", to_json(summary))
    return finish(Finished(collected, summary, store.directory))


def _store_scenario(scenario: Scenario, store: ResultStore) -> None:
    """The scenario as written, with the locustfile where it looks for it, and as loaded."""
    path = Path(scenario.path)
    store.document("scenario.yaml", path.read_text())
    store.document("scenario.json", asdict(scenario))
    if scenario.traffic:
        locustfile = Path(scenario.traffic.locustfile)
        with contextlib.suppress(ValueError):  # one outside of the scenario's directory is not the result's to place
            beside = locustfile.resolve().relative_to(path.parent.resolve())
            (store.directory / beside).parent.mkdir(parents=True, exist_ok=True)
            store.document(str(beside), locustfile.read_text())


def _heeding(say: Say) -> Say:
    """`say`, which is called between steps, and so is where an interrupt that was swallowed is heeded."""
    def heeding(text: str) -> None:
        heed_interrupt()
        say(text)
    return heeding


def _on_testbed(collected: Collected, ground: Ground, me: RunIdentity, store: ResultStore, say: Say) -> None:
    scenario = collected.scenario
    say(f"standing up {len(scenario.topology.hosts)} hosts")
    honest.share_packages()
    who = actors(scenario.topology, collected.selection.flows)
    with testbeds.up(scenario, collected.enforcers.values(), ground.labhost, me, who, ground.engine) as testbed:
        with honest.clients(scenario, testbed) as traffic:
            execute(collected, testbed, traffic, store, _heeding(say))
        say("interrupted: taking the lab down" if collected.interrupted else "taking the lab down")


def _plan(collected: Collected) -> tuple[Step, ...]:
    scenario, options = collected.scenario, collected.options
    traffic_s = QUICK_TRAFFIC_S if options.quick else TRAFFIC_S
    return steps(tuple(collected.enforcers), hosts=len(scenario.topology.hosts), flows=len(collected.selection.flows),
                 replay=min(len(scenario.replay), REPLAY_LIMIT), traffic_s=traffic_s if scenario.traffic else 0.0,
                 attack=scenario.attack is not None, blocks=options.block_count,
                 window_s=options.design.window_s * options.design.crr, loads=options.load_blocks)


def shown(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
