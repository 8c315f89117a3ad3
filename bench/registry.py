"""The one place in bench that knows enforcers: by entry point, so that adding one is one line of its own package.

What somebody else's package does wrong is an EnforcerError of that arm, and touches no other.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from bench.contract import EnforcerError, Guarded, in_a_line, lacking
from bench.installed import Installed
from lab.model import Enforcer

GROUP = "labctl.enforcers"


def installed() -> tuple[Installed, ...]:
    """Every arm that is installed, broken or not, the baseline first; of one name, the one that is found first."""
    found: dict[str, Installed] = {}
    for point in entry_points(group=GROUP):
        package, version = (point.dist.name, point.dist.version) if point.dist else ("?", "?")
        found.setdefault(point.name, Installed(point.name, point.value, package, version))
    return tuple(sorted(found.values(), key=lambda one: (one.name != "none", one.name)))


def names() -> tuple[str, ...]:
    """The name of every arm that is installed, the baseline first."""
    return tuple(one.name for one in installed())


def load(name: str) -> Guarded:
    """A new enforcer by its arm's name. Raises LookupError with the names there are, EnforcerError if it is broken."""
    for point in entry_points(group=GROUP):
        if point.name == name:
            return _made(point)
    raise LookupError(f"there is no arm '{name}'; installed are: {', '.join(names())}")


def _made(point: EntryPoint) -> Guarded:
    try:
        enforcer = point.load()()
        problem = lacking(enforcer, point.name)
    except Exception as err:  # whatever importing somebody's module raises
        problem = in_a_line(err)
    if problem:
        raise EnforcerError(f"arm '{point.name}' ({point.value}) is broken: {problem}")
    return Guarded(point.name, enforcer)


def liar(name: str, delay_object: bytes = b"", **lie: Any) -> Enforcer:
    """An enforcer that lies as told, for the self-test alone: no entry point, so no user can name it as an arm.

    `lie`: the fields of `enforcers.liar.liar.Lie`; `delay` and `cap` as mappings of theirs.
    """
    from enforcers.liar.liar import Cap, Delay, Liar, Lie

    nested = {"delay": Delay, "cap": Cap}
    return Liar(name, Lie(**{k: nested[k](**v) if k in nested else v for k, v in lie.items()}), delay_object)


def delay_source() -> Path:
    """The kernel program of a planted delay, in C."""
    from enforcers.liar.liar import SOURCE

    return Path(str(SOURCE))
