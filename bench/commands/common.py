"""What every command of the command line shares: exit codes, finding a scenario, saying what is wrong in a line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from bench import registry
from bench.contract import EnforcerError
from lab.model import Backend, Scenario

ChosenBackend = Annotated[Backend | None, typer.Option(
    "--backend", help="What hosts are made of, instead of what the scenario says: namespaces or containers.")]

EXIT_DONE, EXIT_DEFECT, EXIT_USAGE, EXIT_MACHINE, EXIT_INVALID, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130
CODES = {
    EXIT_DONE: "done",
    EXIT_DEFECT: "a defect was found",
    EXIT_USAGE: "the call or the scenario is wrong",
    EXIT_MACHINE: "this machine cannot run it",
    EXIT_INVALID: "the measurement is invalid",
    EXIT_INTERRUPTED: "interrupted",
}


def epilog(*examples: str, codes: tuple[int, ...] = (EXIT_DONE, EXIT_USAGE),
           meaning: Mapping[int, str] = MappingProxyType({})) -> str:
    """The end of a command's help: its examples, and the exit codes it can give. `meaning`: where it is its own."""
    shown = "   ".join(f"[bold]{example}[/]" for example in examples)
    meanings = "; ".join(f"{code} {meaning.get(code, CODES[code])}" for code in codes)
    return f"Example{'s' * (len(examples) > 1)}: {shown}   Exit codes: {meanings}."


def fail(message: str, status: int) -> typer.Exit:
    """Print one line for a person on standard error; raise what this returns."""
    print(message, file=sys.stderr)
    return typer.Exit(status)


def scenario_directories() -> tuple[Path, ...]:
    """Where scenarios are looked for by name: scenarios/ here, then the one beside labctl."""
    here, beside = Path("scenarios"), Path(__file__).resolve().parents[2] / "scenarios"
    return (here, beside)


def scenario_names() -> tuple[str, ...]:
    """Every scenario that can be named without its path."""
    return tuple(sorted({p.stem for d in scenario_directories() for p in d.glob("*.yaml")}))


def find_scenario(name: str) -> Path:
    """The file a user means: a path, or the name of one in scenarios/ here or beside labctl."""
    candidates = [Path(name), *(d / f"{name}.yaml" for d in scenario_directories())]
    for path in candidates:
        if path.is_file():
            return path
    raise fail(f"{name}: no such scenario; name a file or one of: {', '.join(scenario_names())}", EXIT_USAGE)


def load_scenario(name: str) -> Scenario:
    """The scenario a user means, checked; every problem with it is printed before the command ends."""
    from lab.scenario import ScenarioError, load

    try:
        return load(find_scenario(name), arms=registry.names())
    except ScenarioError as err:
        raise fail("\n".join(str(problem) for problem in err.problems), EXIT_USAGE) from None


def on_backend(scenario: Scenario, backend: Backend | None) -> Scenario:
    """The scenario on the backend that the user asked for, if any."""
    topology = scenario.topology
    real = [name for name, one in topology.processes.items() if one.real]
    real += [name for name, host in topology.hosts.items() if host.image]
    if backend == "mininet" and real:
        raise fail(f"labctl: '{real[0]}' needs a container; leave out --backend mininet", EXIT_USAGE)
    if backend == "docker" and any(topology.tenants):
        raise fail(f"labctl: {scenario.name} has tenants, and networks of one engine cannot overlap; leave out "
                   "--backend docker", EXIT_USAGE)
    return replace(scenario, backend=backend) if backend else scenario


def share(text: str) -> float:
    """`2%`, `2 %` or `0.02` as 0.02; for an option. Raises typer.BadParameter."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no share; write one such as 2%") from None
    if not 0 < value < 1:
        raise typer.BadParameter(f"{text} is not between 0 and 100 %; write one such as 2%")
    return value


def known_arms(names: tuple[str, ...]) -> tuple[str, ...]:
    """`names` as they are, if every one is an installed arm that can be loaded."""
    for name in names:
        try:
            registry.load(name)
        except (LookupError, EnforcerError) as err:
            raise fail(f"labctl: {err}", EXIT_USAGE) from None
    return names


def packages_here() -> None:
    """End the command with the one line to type where packages are missing that every lab needs."""
    from lab.packages import apt_line, missing_packages

    if missing := missing_packages():
        raise fail(f"labctl: packages are missing; as root type: {apt_line(missing)}", EXIT_MACHINE)
