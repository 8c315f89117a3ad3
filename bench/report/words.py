"""A policy's parts in words, for people: selectors, services, rules."""

from __future__ import annotations

from collections.abc import Iterable

from lab.model import Rule, Selector, Service
from lab.services import service_text


def selector_text(selector: Selector, most: int = 4) -> str:
    """`role=web or api, process=frontend`; `anyone` for what selects everything. `most`: values shown of a key."""
    if not selector.keys:
        return "anyone"
    return ", ".join(f"{key}={some(values, most, ' or ')}" for key, values in selector.keys.items())


def services_text(services: Iterable[Service], most: int = 6) -> str:
    """`80/tcp, 443/tcp`; the family only where it is one of the two."""
    return some([f"{service_text(s)}{f' (IPv{s.family})' if s.family else ''}" for s in services], most)


def rule_text(rule: Rule) -> str:
    """A rule as a sentence: `allow role=user → role=web on 80/tcp`."""
    return (f"{rule.verdict} {selector_text(rule.source)} → {selector_text(rule.target)} "
            f"on {services_text(rule.services)}")


def some(texts: Iterable[str], most: int, between: str = ", ") -> str:
    """The first of many, and how many more there are."""
    listed = list(texts)
    more = len(listed) - most
    return between.join(listed) if more <= 0 else f"{between.join(listed[:most])} and {more} more"


def numbered(n: int, one: str) -> str:
    """`1 host`, `3 hosts`."""
    return f"{n:,} {one}{'' if n == 1 else 'es' if one.endswith(('ss', 'x')) else 's'}"
