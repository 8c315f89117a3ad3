"""Services as people write them: 80/tcp, 8000-8100/tcp, 53/udp, icmp, any."""

from __future__ import annotations

import re

from lab.model import Family, Service
from lab.problems import shown

_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?/(tcp|udp)")


class ServiceError(ValueError):
    """A text is no service; the message says what to write."""


def parse_service(text: str, family: Family | None = None) -> Service:
    """The service that `text` names, in one family or both. Raises ServiceError."""
    if text in ("icmp", "any"):
        return Service("icmp" if text == "icmp" else "any", family=family)
    found = _PORTS.fullmatch(text)
    if found is None:
        raise ServiceError(f"{shown(text)} is not port/protocol; write 80/tcp or name it under processes")
    low = int(found[1])
    high = int(found[2] or low)
    if not 1 <= low <= 65535 or high > 65535:
        raise ServiceError(f"{shown(text)} has a port outside 1 to 65535; write one inside, such as 80/tcp")
    if low > high:
        raise ServiceError(f"{shown(text)} ends before it begins; write {high}-{low}/{found[3]}")
    return Service("tcp" if found[3] == "tcp" else "udp", low, high, family)


def service_text(service: Service) -> str:
    """`service` as `parse_service` reads it, without its family."""
    if service.proto in ("icmp", "any"):
        return service.proto
    ports = f"{service.low}" if service.low == service.high else f"{service.low}-{service.high}"
    return f"{ports}/{service.proto}"
