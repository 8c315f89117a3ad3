"""The shape of a scenario file, version 1: pydantic models of the document, one field's "what to write" beside it.

Shape only; what refers to what is checked in `lab.scenario`. Every custom error carries its whole message.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from lab.problems import shown

MAX_COUNT = 4096  # hosts of one entry
RESERVED_KEYS = ("host", "segment", "cidr", "process", "user", "any", "family")  # no labels


def wrong(message: str) -> PydanticCustomError:
    """An error whose text is complete: what is wrong; what to write."""
    return PydanticCustomError("labctl", "{message}", {"message": message})


# --- values -----------------------------------------------------------------------------------


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", text):
        raise wrong(f"{shown(text)} is not a name; write up to 40 of a-z, 0-9 and -, not beginning with -")
    return text


def _label(text: str) -> str:
    if text in RESERVED_KEYS:
        raise wrong(f"'{text}' means something else in a selector; choose another label")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}", text):
        raise wrong(f"{shown(text)} is not a label; write up to 40 letters, digits, _ . and -")
    return text


def _user(text: str) -> str:
    if text == "root":
        raise wrong("no service runs as root here; write another user, such as svc")
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", text):
        raise wrong(
            f"{shown(text)} is not a user; write up to 32 of a-z, 0-9, _ and -, not beginning with a digit or -"
        )
    return text


def _exe(text: str) -> str:
    clean = re.fullmatch(r"/(opt|srv)(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+", text) and len(text) <= 200
    if not clean:
        raise wrong(f"{shown(text)} is not a plain file path under /opt or /srv; write one like /opt/shop/api")
    return text


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise wrong(f"{shown(text)} is not a SHA-256; write its 64 hexadecimal digits in lower case")
    return text


def _scalar_text(value: Any) -> Any:
    """A label's value: numbers and true/false stand for their own spelling."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return value


def _label_value(text: str) -> str:
    if not 0 < len(text) <= 63 or not text.isprintable():
        raise wrong(f"{shown(text)} is not a label's value; write 1 to 63 printable characters")
    return text


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _rate(value: Any) -> Any:
    text = value.removesuffix("/s").strip() if isinstance(value, str) else str(value)
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,6})?", text) or float(text) <= 0:
        raise wrong(f"{shown(value)} is not a rate; write requests per second, such as 200/s")
    return float(text)


def _one_verdict(rule: RuleDoc) -> RuleDoc:
    if (rule.allow is None) == (rule.deny is None):
        raise wrong("has to say either allow or deny, once; write allow: {from: …, to: …, service: …}")
    return rule


def _any_or_keys(selector: dict[str, list[str]]) -> dict[str, list[str]]:
    if not selector:
        raise wrong("selects nothing in particular; write {any: true} for everything, or labels such as {role: web}")
    if "any" in selector:
        if len(selector) > 1:
            raise wrong("'any' stands with other keys; write {any: true} alone, or leave it out")
        if selector["any"] != ["true"]:
            raise wrong("'any' can only be true; write {any: true}, or leave it out")
    return selector


Name = Annotated[str, AfterValidator(_name)]
User = Annotated[str, AfterValidator(_user)]
LabelName = Annotated[str, AfterValidator(_label)]
LabelValue = Annotated[str, AfterValidator(_label_value), BeforeValidator(_scalar_text)]
SelectorDoc = Annotated[
    dict[str, Annotated[list[LabelValue], Field(min_length=1), BeforeValidator(_as_list)]],
    AfterValidator(_any_or_keys),
]
ServiceList = Annotated[list[LabelValue], Field(min_length=1), BeforeValidator(_as_list)]
ReplayRow = Annotated[tuple[str, str, str, Annotated[int, Field(ge=0, le=10**15)]], Field(strict=False)]


# --- the document -----------------------------------------------------------------------------


class Doc(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SegmentDoc(Doc):
    v4: str | None = Field(None, description="an IPv4 prefix such as 10.10.1.0/24")
    v6: str | None = Field(None, description="an IPv6 prefix such as fd10:1::/64")


class HostDoc(Doc):
    segment: str = Field(description="the segment it is in, such as segment: dmz")
    count: int | None = Field(None, ge=1, le=MAX_COUNT, description=f"how many of them, 1 to {MAX_COUNT}")
    labels: dict[LabelName, LabelValue] = Field({}, description="labels such as {role: web, env: prod}")
    runs: list[str] = Field([], description="a list of processes, such as [frontend]")
    agent: Literal["possible", "impossible"] = Field("possible", description="possible or impossible")
    external: bool = Field(False, description="true or false")
    v4: str | None = Field(None, description="an IPv4 address in its segment")
    v6: str | None = Field(None, description="an IPv6 address in its segment")


class TopologyDoc(Doc):
    segments: dict[Name, SegmentDoc] = Field(description="segments by name, such as dmz: {v4: 10.10.1.0/24}")
    hosts: dict[Name, HostDoc] = Field(description="hosts by name, such as web: {segment: dmz, runs: [frontend]}")


class ProcessDoc(Doc):
    exe: Annotated[str, AfterValidator(_exe)] = Field(description="a path under /opt or /srv, such as /opt/shop/api")
    user: User = Field("svc", description="the user it runs as, such as svc")
    listens: list[LabelValue] = Field([], description="a list of services, such as [80/tcp]")
    calls: list[str] = Field([], description="a list of processes, such as [api]")
    vulnerable: bool = Field(False, description="true or false")
    sha256: Annotated[str, AfterValidator(_sha256)] | None = Field(None, description="64 hexadecimal digits")


class RuleBody(Doc):
    source: SelectorDoc = Field(alias="from", description="a selector such as {role: web}, or {any: true}")
    target: SelectorDoc = Field(alias="to", description="a selector such as {role: db}, or {any: true}")
    service: ServiceList = Field(description="a service such as 80/tcp, a list of them, icmp, or any")
    family: Literal[4, 6] | None = Field(None, description="4 or 6, or leave it out for both")


class RuleDoc(Doc):
    name: Annotated[str, AfterValidator(_label_value)] | None = Field(None, description="a text of up to 63 characters")
    allow: RuleBody | None = Field(None, description="{from: …, to: …, service: …}")
    deny: RuleBody | None = Field(None, description="{from: …, to: …, service: …}")


class PolicyDoc(Doc):
    default: Literal["allow", "deny"] = Field(description="default: deny, or default: allow")
    rules: list[Annotated[RuleDoc, AfterValidator(_one_verdict)]] = Field(
        [], description="rules such as - allow: {from: {role: web}, to: {role: db}, service: 80/tcp}"
    )
    loopback: bool = Field(False, description="true or false")


class TrafficDoc(Doc):
    clients: SelectorDoc = Field(description="the hosts that make the traffic, such as {role: user}")
    process: str | None = Field(None, description="the process of the clients that makes it")
    locustfile: str = Field(description="a locustfile beside the scenario, such as shop.py")
    rate: Annotated[float, BeforeValidator(_rate)] = Field(description="requests per second in all, such as 200/s")
    to: SelectorDoc | None = Field(None, description="the hosts that it goes to, such as {role: web}")


class FootholdDoc(Doc):
    host: str = Field(description="the host that is taken at the start")
    process: str = Field(description="the process there that is taken at the start")


class AttackDoc(Doc):
    foothold: FootholdDoc = Field(description="where the attacker starts, such as {host: web, process: frontend}")
    goal: SelectorDoc = Field(description="the hosts that the attacker is after, such as {value: crown-jewel}")


class ReplayDoc(Doc):
    foreseen: list[ReplayRow] = Field([], description="rows of [client, server, service, count]")
    unforeseen: list[ReplayRow] = Field([], description="rows of [client, server, service, count]")


class Document(Doc):
    version: Literal[1] = Field(description="version: 1")
    name: Name = Field(description="a name of a-z, 0-9 and -, such as three-tier")
    topology: TopologyDoc = Field(description="topology: with segments and hosts")
    processes: dict[Name, ProcessDoc] = Field({}, description="processes by name, such as api: {exe: /opt/shop/api}")
    policy: PolicyDoc = Field(description="policy: with default and rules")
    traffic: TrafficDoc | None = Field(None, description="{clients: …, locustfile: …, rate: …}")
    attack: AttackDoc | None = Field(None, description="{foothold: {host: …, process: …}, goal: …}")
    arms: list[str] | None = Field(None, min_length=1, description="a list of arms, such as [none, agent-nft]")
    seed: int = Field(1, ge=0, le=2**32 - 1, description="a whole number from 0 to 4294967295")
    replay: ReplayDoc | None = Field(None, description="{foreseen: [...], unforeseen: [...]}")
    invented: list[str] = Field([], description="a list of texts")
