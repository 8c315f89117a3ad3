"""A flow as a person writes it: `web-1/frontend db 6379/tcp`, or as labctl prints it. Pure."""

from __future__ import annotations

import re

from lab.model import STRANGER, Family, Flow, Topology
from lab.policy import Offer, offered, owner_user

FORM = "SOURCE[/PROCESS[(USER)]] TARGET[/PROCESS] PORT/PROTO|icmp [v4|v6]"
_FLOW = re.compile(r"(?P<source>[^/\s>]+)(/(?P<process>\([a-z]+\)|[^\s(]+))?(\((?P<user>[^)\s]+)\))?\s+(>\s+)?"
                   r"(?P<target>[^/\s]+)(/(?P<owner>\S+))?\s+(?P<service>\S+)(\s+v(?P<family>[46]))?")


class FlowTextError(ValueError):
    """The text names no flow of the topology; the message says what is wrong and what could be written instead."""


def parse(text: str, topology: Topology) -> Flow:
    """The flow that `text` means.

    What is left out is what is likely: the source's first process, as the user it is declared with; the process that
    has the port open at the target; IPv4. Raises FlowTextError.
    """
    found = _FLOW.fullmatch(" ".join(text.replace("->", ">").split()))
    if not found:
        raise FlowTextError(f"flow '{text}': write {FORM}, such as: web-1/frontend db 6379/tcp")
    source, target = (_known(found[end], topology.hosts, "host") for end in ("source", "target"))
    runs = topology.hosts[source].runs
    process = found["process"] or (runs[0] if runs else STRANGER)
    if process not in (*runs, STRANGER):
        raise FlowTextError(f"flow '{text}': {source} runs no '{process}', but: {', '.join((*runs, STRANGER))}")
    user = _known(found["user"] or owner_user(process, topology), {*topology.users, "nobody"}, "user")
    offer = _offer(text, found["service"], found["owner"], target, topology)
    family: Family = 6 if found["family"] == "6" else 4
    return Flow(source, process, user, target, offer.process, offer.proto, offer.port, family)


def _offer(text: str, service: str, owner: str | None, target: str, topology: Topology) -> Offer:
    offers = offered(topology)[target]
    for offer in offers:
        if service == _service(offer) and owner in (None, offer.process):
            return offer
    there = ", ".join(dict.fromkeys(f"{_service(o)} ({o.process or 'the kernel'})" for o in offers))
    raise FlowTextError(f"flow '{text}': {target} offers no {service}{f' by {owner}' if owner else ''}, but: {there}")


def _service(offer: Offer) -> str:
    return "icmp" if offer.proto == "icmp" else f"{offer.port}/{offer.proto}"


def _known(name: str, names: object, what: str) -> str:
    known = sorted(names)  # type: ignore[call-overload]
    if name not in known:
        shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
        raise FlowTextError(f"there is no {what} '{name}', but: {shown}")
    return name
