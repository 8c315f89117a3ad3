"""Commands about what is alive: up, ls, down, clean."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.commands.common import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_MACHINE,
    EXIT_USAGE,
    ChosenBackend,
    epilog,
    fail,
    known_arms,
    on_backend,
    packages_here,
)
from bench.commands.common import load_scenario as load
from lab import runs

app = typer.Typer()
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


@app.command(epilog=epilog("labctl up three-tier --arm agent-nft",
                           codes=(EXIT_DONE, EXIT_USAGE, EXIT_MACHINE, EXIT_INTERRUPTED)))
def up(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of one in scenarios/.")],
    arm: Annotated[str, typer.Option(help="The arm to put in place.")] = "none",
    backend: ChosenBackend = None,
    as_json: Json = False,
) -> None:
    """Stand a lab up and leave it standing, to look around in: shell, exec, probe, explain, capture; then down."""
    from bench import testbeds
    from lab.backends.docker_engine import EngineError
    from lab.hosts.build import BuildError, build

    packages_here()
    loaded = on_backend(load(scenario), backend)
    known_arms((arm, *loaded.arms))
    try:
        build()
        engine = testbeds.prepare(loaded.backend)
    except BuildError as err:
        raise fail(str(err), EXIT_MACHINE) from None
    except EngineError as err:
        raise fail(f"labctl: {err}", EXIT_MACHINE) from None
    reads, writes = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reads)
        _daemon(loaded, arm, engine, writes)
    os.close(writes)
    run_id = _await_ready(pid, reads)
    if as_json:
        print(json.dumps({"id": run_id, "scenario": loaded.name, "arm": arm}))
        return
    host = next(iter(loaded.topology.hosts))
    print(f"{loaded.name} stands as {run_id}, arm {arm}.\n"
          f"Look around:  labctl shell   labctl exec {host} -- ip addr   labctl ls\nTake it down: labctl down")


def _daemon(scenario: Any, arm: str, engine: Any, writes: int) -> None:
    """The lab's own process, out of the terminal's session. What it has to say goes to whoever reads the pipe."""
    from bench.standing import serve
    from lab.isolation import ENTRY_DIR, IsolationError, RunIdentity, run_isolated

    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(writes, 1)
    os.dup2(writes, 2)
    os.close(writes)

    def tell(message: dict[str, Any]) -> None:
        print(json.dumps(message), flush=True)
        if "ready" in message:
            log = os.open(ENTRY_DIR / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)

    def inside(me: RunIdentity) -> int:
        return serve(scenario, arm, me, tell, engine)

    status = EXIT_MACHINE
    try:
        status = run_isolated(inside, "standing", scenario.name)
    except IsolationError as err:
        print(json.dumps({"error": str(err)}), flush=True)
    finally:
        os._exit(status)


def _await_ready(pid: int, reads: int) -> str:
    """The lab's id once it is ready; ends the command where it does not come up."""
    with progress() as say, os.fdopen(reads) as lines:
        for signum in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us with SIGINT ignored
            signal.signal(signum, signal.default_int_handler)
        try:
            for line in lines:
                message = _message(line)
                if "ready" in message:
                    return str(message["ready"])
                if "error" in message:
                    print(message["error"], file=sys.stderr)
                if "progress" in message:
                    say(str(message["progress"]))
        except KeyboardInterrupt:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
            raise typer.Exit(EXIT_INTERRUPTED) from None
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    raise typer.Exit(status if status > 0 else EXIT_MACHINE)


def _message(line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    return {"error": line.rstrip()}


@contextlib.contextmanager
def progress() -> Iterator[Any]:
    """Where to say what is being done: one line on standard error that changes, or a line a step off a terminal."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda text: print(f"labctl: {text}", file=sys.stderr, flush=True)
        return
    with console.status("labctl") as status:
        yield lambda text: status.update(f"labctl: {text}")


@app.command(epilog=epilog("labctl ls"))
def ls(as_json: Json = False) -> None:
    """List what is alive: standing labs, and runs under way."""
    found = [{**asdict(entry), **_about(entry)} for entry in runs.alive()]
    if as_json:
        print(json.dumps(found))
        return
    if not found:
        print("nothing is standing; start a lab with: labctl up SCENARIO")
        return
    table = Table(box=None, pad_edge=False)
    for head in ("id", "what", "scenario", "arm", "hosts", "since", "pid"):
        table.add_column(head)
    for one in found:
        age = time.time() - float(one["started"])
        table.add_row(one["id"], "lab" if one["kind"] == "standing" else "run", one["scenario"], one["arm"],
                      str(one["hosts"]), _ago(age), str(one["pid"]))
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)


def _about(entry: runs.Entry) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((entry.directory / "lab.json").read_text()))
    return {"arm": "standing up" if entry.kind == "standing" else "all", "hosts": ""}


def _ago(seconds: float) -> str:
    began = datetime.now(UTC).timestamp() - seconds
    return datetime.fromtimestamp(began, UTC).strftime("%H:%M:%SZ") + f" ({seconds:.0f} s)"


@app.command(epilog=epilog("labctl down", "labctl down labctl-1f3a90c2", "labctl down --all",
                           codes=(EXIT_DONE, EXIT_USAGE, EXIT_MACHINE)))
def down(
    lab: Annotated[str | None, typer.Argument(help="The id of a lab or a run; the only standing lab if none.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every standing lab.")] = False,
) -> None:
    """Take a standing lab down, or end a run, which keeps what it measured. Returns when nothing of it is left."""
    from bench.control import ControlError, standing, take_down

    try:
        living = runs.alive()
        if everything:
            wanted = [entry for entry in living if entry.kind == "standing"]
        else:
            wanted = [e for e in living if lab and e.id in (lab, f"labctl-{lab}")] or [standing(lab)]
        for entry in wanted:
            take_down(entry)
            print(f"{entry.id} ({entry.scenario}) is down")
    except ControlError as err:
        raise fail(str(err), EXIT_USAGE) from None


@app.command(epilog=epilog("labctl clean --dry-run", "labctl clean"))
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
) -> None:
    """Show what dead runs left, then remove it; the living are not touched. Every run does so when it starts."""
    from lab.isolation import cgroup2_root

    root = cgroup2_root()
    left = runs.leftovers(root)
    for line in left:
        print(f"{'would remove' if dry_run else 'removing'} {line}")
    if not left:
        print("nothing to clean: no dead run left anything")
    if not dry_run:
        runs.sweep(root)
