"""Every technique, in the order in which they are tried: what changes the lab for good comes last."""

from __future__ import annotations

from bench.attacks import credentials, discovery, over_time, spoofing, tunnels
from bench.attacks.technique import Technique

_LAST = ("departed", "kill-agent", "flush-firewall")
_ALL = (*discovery.TECHNIQUES, *credentials.TECHNIQUES, *tunnels.TECHNIQUES, *spoofing.TECHNIQUES,
        *over_time.TECHNIQUES)
TECHNIQUES: tuple[Technique, ...] = (
    *(one for one in _ALL if one.name not in _LAST), *(one for name in _LAST for one in _ALL if one.name == name))
DROWNING = frozenset({"flood", "kill-agent"})  # they may make telemetry lose what it has: that is fetched first
