"""The one place in bench that knows enforcers: by entry point, so that adding one is one line of its own package."""

from __future__ import annotations

from importlib.metadata import entry_points

from lab.model import Enforcer

GROUP = "labctl.enforcers"


def names() -> tuple[str, ...]:
    """Every arm that is installed, the baseline first."""
    found = sorted({point.name for point in entry_points(group=GROUP)})
    return tuple(sorted(found, key=lambda name: (name != "none", name)))


def load(name: str) -> Enforcer:
    """A new enforcer by its arm's name. Raises LookupError with the names there are."""
    for point in entry_points(group=GROUP):
        if point.name == name:
            enforcer: Enforcer = point.load()()
            return enforcer
    raise LookupError(f"there is no arm '{name}'; installed are: {', '.join(names())}")
