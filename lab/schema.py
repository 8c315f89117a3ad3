"""The shape of a scenario file, version 1: pydantic models of the document, one field's "what to write" beside it.

Shape only; what refers to what is checked in `lab.scenario`. Every custom error carries its whole message. A field's
title says what it means, its description what to write; `lab.schema_json` makes editors' JSON Schema of both.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from lab.problems import shown

MAX_COUNT = 4096  # hosts of one entry
RESERVED_KEYS = ("host", "segment", "cidr", "process", "user", "any", "family")  # no labels
NAME = "[a-z0-9][a-z0-9-]{0,39}"
LABEL = "[A-Za-z0-9][A-Za-z0-9_.-]{0,39}"
USER = "[a-z_][a-z0-9_-]{0,31}"
EXE = "(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+"
OWN_EXE = "/(opt|srv)(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+"  # where labctl puts its own service
IMAGE = "[a-z0-9][a-zA-Z0-9._/:@-]{0,199}"
SHA256 = "[0-9a-f]{64}"
RATE = r"[0-9]{1,7}(\.[0-9]{1,6})?"


def wrong(message: str) -> PydanticCustomError:
    """An error whose text is complete: what is wrong; what to write."""
    return PydanticCustomError("labctl", "{message}", {"message": message})


# --- values -----------------------------------------------------------------------------------


def _name(text: str) -> str:
    if not re.fullmatch(NAME, text):
        raise wrong(f"{shown(text)} is not a name; write up to 40 of a-z, 0-9 and -, not beginning with -")
    return text


def _label(text: str) -> str:
    if text in RESERVED_KEYS:
        raise wrong(f"'{text}' means something else in a selector; choose another label")
    if not re.fullmatch(LABEL, text):
        raise wrong(f"{shown(text)} is not a label; write up to 40 letters, digits, _ . and -")
    return text


def _user(text: str) -> str:
    if text == "root":
        raise wrong("no service runs as root here; write another user, such as svc")
    if not re.fullmatch(USER, text):
        raise wrong(
            f"{shown(text)} is not a user; write up to 32 of a-z, 0-9, _ and -, not beginning with a digit or -"
        )
    return text


def _exe(text: str, info: ValidationInfo) -> str:
    real = info.data.get("command") is not None  # which stands before it in the model
    if not re.fullmatch(EXE if real else OWN_EXE, text) or len(text) > 200:
        where = "" if real else " under /opt or /srv"
        raise wrong(f"{shown(text)} is not a plain file path{where}; write one like /opt/shop/api")
    return text


def _image(text: str) -> str:
    if not re.fullmatch(IMAGE, text):
        raise wrong(f"{shown(text)} is not the name of an image; write one such as nginx:1.27")
    return text


def _sha256(text: str) -> str:
    if not re.fullmatch(SHA256, text):
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
    if isinstance(value, bool) or not re.fullmatch(RATE, text) or float(text) <= 0:
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


def _text(pattern: str, **more: Any) -> WithJsonSchema:
    """What a JSON Schema says of a text that has to fit `pattern` from end to end."""
    return WithJsonSchema({"type": "string", "pattern": f"^{pattern}$", **more})


_SCALAR = {"type": ["string", "number", "boolean"]}
Name = Annotated[str, AfterValidator(_name), _text(NAME)]
User = Annotated[str, AfterValidator(_user), _text(USER, **{"not": {"const": "root"}})]
LabelName = Annotated[str, AfterValidator(_label), _text(LABEL, **{"not": {"enum": list(RESERVED_KEYS)}})]
LabelValue = Annotated[
    str, AfterValidator(_label_value), BeforeValidator(_scalar_text),
    WithJsonSchema({**_SCALAR, "minLength": 1, "maxLength": 63}),
]  # fmt: skip
_ONE_OR_MORE = {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR, "minItems": 1}]}
SelectorDoc = Annotated[
    dict[str, Annotated[list[LabelValue], Field(min_length=1), BeforeValidator(_as_list)]],
    AfterValidator(_any_or_keys),
    WithJsonSchema({"type": "object", "minProperties": 1, "additionalProperties": _ONE_OR_MORE, "properties": {
        "any": {"enum": [True, "true", [True], ["true"]]}}, "if": {"required": ["any"]}, "then": {"maxProperties": 1}}),
]  # fmt: skip
ServiceList = Annotated[list[LabelValue], Field(min_length=1), BeforeValidator(_as_list), WithJsonSchema(_ONE_OR_MORE)]
Exe = Annotated[str, AfterValidator(_exe), _text(EXE, maxLength=200)]
Image = Annotated[str, AfterValidator(_image), _text(IMAGE)]
Sha256 = Annotated[str, AfterValidator(_sha256), _text(SHA256)]
Rate = Annotated[
    float,
    BeforeValidator(_rate),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": rf"^{RATE}(/s)?\s*$"}]}
    ),
]
ReplayRow = Annotated[tuple[str, str, str, Annotated[int, Field(ge=0, le=10**15)]], Field(strict=False)]


# --- the document -----------------------------------------------------------------------------


class Doc(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SegmentDoc(Doc):
    v4: str | None = Field(
        None, title="its IPv4 prefix; one that is free if left out", description="an IPv4 prefix such as 10.10.1.0/24"
    )
    v6: str | None = Field(
        None, title="its IPv6 prefix; one that is free if left out", description="an IPv6 prefix such as fd10:1::/64"
    )
    tenant: Name | None = Field(
        None,
        title="whose it is: prefixes of two tenants may overlap, and no packet goes from one to the other",
        description="a name such as blue",
    )


class HostDoc(Doc):
    segment: str = Field(
        title="the segment that the host is in", description="the segment it is in, such as segment: dmz"
    )
    count: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        title="how many alike: count: 2 of web makes web-1 and web-2",
        description=f"how many of them, 1 to {MAX_COUNT}",
    )
    labels: dict[LabelName, LabelValue] = Field(
        {}, title="what selectors of the policy call it by", description="labels such as {role: web, env: prod}"
    )
    runs: list[str] = Field([], title="the processes on it", description="a list of processes, such as [frontend]")
    agent: Literal["possible", "impossible"] = Field(
        "possible", title="whether an agent can be installed on it", description="possible or impossible"
    )
    image: Image | None = Field(
        None,
        title="the image of its container, which the engine has already; labctl's own if left out",
        description="an image such as nginx:1.27",
    )
    pod: bool = Field(
        False,
        title="whether its processes have a container each, in one network; without containers it is a host as any",
        description="true or false",
    )
    external: bool = Field(
        False, title="whether it is someone else's: it takes no agent and has no labels", description="true or false"
    )
    v4: str | None = Field(
        None, title="its IPv4 address; the next that is free if left out", description="an IPv4 address in its segment"
    )
    v6: str | None = Field(
        None, title="its IPv6 address; the next that is free if left out", description="an IPv6 address in its segment"
    )


class TopologyDoc(Doc):
    segments: dict[Name, SegmentDoc] = Field(
        title="layer-2 networks, which meet at one router",
        description="segments by name, such as dmz: {v4: 10.10.1.0/24}",
    )
    hosts: dict[Name, HostDoc] = Field(
        title="the hosts in them", description="hosts by name, such as web: {segment: dmz, runs: [frontend]}"
    )


class ProcessDoc(Doc):
    # Where labctl puts its own service: without a command the path is narrower, which an editor should say too.
    model_config = ConfigDict(json_schema_extra={
        "if": {"properties": {"command": {"type": "null"}}},
        "then": {"properties": {"exe": {"pattern": f"^({OWN_EXE})$"}}}})

    command: list[str] | None = Field(
        None,
        title="a real program that serves its ports, in place of labctl's own; []: what the host's image starts",
        description="a command line as a list, such as [redis-server, --port, '6379']",
    )
    image: Image | None = Field(
        None,
        title="the image of its own container on a pod, which the engine has already; labctl's own if left out",
        description="an image such as nginx:1.27",
    )
    exe: Exe = Field(
        title="the path of its executable, which is its identity in the policy; anywhere, if it has a command",
        description="a path under /opt or /srv, such as /opt/shop/api",
    )
    user: User = Field("svc", title="the user it runs as", description="the user it runs as, such as svc")
    listens: list[LabelValue] = Field(
        [], title="the services it offers, over IPv4 and IPv6", description="a list of services, such as [80/tcp]"
    )
    calls: list[str] = Field(
        [],
        title="the processes that it asks in turn when it is asked",
        description="a list of processes, such as [api]",
    )
    vulnerable: bool = Field(
        False,
        title="whether an attacker who reaches one of its services can take its host",
        description="true or false",
    )
    environment: dict[str, str] = Field(
        {}, title="what the command finds in its environment", description="variables such as {LANG: C}"
    )
    sha256: Sha256 | None = Field(
        None, title="the content that the executable must have to be this process", description="64 hexadecimal digits"
    )
    interpreter: Literal["python3", "bash"] | None = Field(
        None, title="what runs it, if it is a script: the script is its identity", description="python3 or bash"
    )
    content: Literal["any", "original", "rewritten"] = Field(
        "any",
        title="original: only labctl's own service at its path is this process; rewritten: there, but tampered with",
        description="any, original or rewritten",
    )
    poses_as: Exe | None = Field(
        None,
        title="what it calls itself in lists of processes, which is not its identity",
        description="a path, such as /opt/shop/api",
    )


class RuleBody(Doc):
    source: SelectorDoc = Field(
        alias="from",
        title="who asks: keys are ANDed, the values of one key ORed",
        description="a selector such as {role: web}, or {any: true}",
    )
    target: SelectorDoc = Field(
        alias="to",
        title="who is asked: labels, host, segment, cidr, process or user",
        description="a selector such as {role: db}, or {any: true}",
    )
    service: ServiceList = Field(
        title="for what; the name of a process that listens stands for its services",
        description="a service such as 80/tcp, a list of them, icmp, or any",
    )
    family: Literal[4, 6] | None = Field(
        None, title="over which version of IP", description="4 or 6, or leave it out for both"
    )


class RuleDoc(Doc):
    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["allow"]}, {"required": ["deny"]}]})
    name: Annotated[str, AfterValidator(_label_value)] | None = Field(
        None,
        title="what verdicts and reports call the rule; rule-N if left out",
        description="a text of up to 63 characters",
    )
    allow: RuleBody | None = Field(
        None, title="what the rule allows; a deny that matches overrides it", description="{from: …, to: …, service: …}"
    )
    deny: RuleBody | None = Field(None, title="what the rule denies", description="{from: …, to: …, service: …}")


class PolicyDoc(Doc):
    default: Literal["allow", "deny"] = Field(
        title="the verdict where no rule matches", description="default: deny, or default: allow"
    )
    rules: list[Annotated[RuleDoc, AfterValidator(_one_verdict)]] = Field(
        [],
        title="the rules; their order never matters",
        description="rules such as - allow: {from: {role: web}, to: {role: db}, service: 80/tcp}",
    )
    loopback: bool = Field(
        False, title="whether the policy is about 127.0.0.0/8 and ::1 too", description="true or false"
    )


class TrafficDoc(Doc):
    clients: SelectorDoc = Field(
        title="the hosts that make honest traffic", description="the hosts that make the traffic, such as {role: user}"
    )
    process: str | None = Field(
        None,
        title="the process of the clients that makes it; the first they share if left out",
        description="the process of the clients that makes it",
    )
    locustfile: str = Field(
        title="what a client does, as a locustfile; the path is taken from the scenario's directory",
        description="a locustfile beside the scenario, such as shop.py",
    )
    rate: Rate = Field(
        title="how much of it, all clients together", description="requests per second in all, such as 200/s"
    )
    to: SelectorDoc | None = Field(
        None,
        title="where it goes; every host that the policy lets all clients reach if left out",
        description="the hosts that it goes to, such as {role: web}",
    )


class FootholdDoc(Doc):
    host: str = Field(
        title="the host; of an entry with a count its first", description="the host that is taken at the start"
    )
    process: str = Field(title="the process", description="the process there that is taken at the start")


class AttackDoc(Doc):
    foothold: FootholdDoc = Field(
        title="what the attacker has taken at the start",
        description="where the attacker starts, such as {host: web, process: frontend}",
    )
    goal: SelectorDoc = Field(
        title="what the attacker is after: the crown jewels",
        description="the hosts that the attacker is after, such as {value: crown-jewel}",
    )


class ReplayDoc(Doc):
    foreseen: list[ReplayRow] = Field(
        [],
        title="recorded flows that the policy was learnt from",
        description="rows of [client, server, service, count]",
    )
    unforeseen: list[ReplayRow] = Field(
        [], title="legitimate flows that came later", description="rows of [client, server, service, count]"
    )


class Document(Doc):
    version: Literal[1] = Field(title="the version of this format", description="version: 1")
    name: Name = Field(
        title="the name that results are kept under", description="a name of a-z, 0-9 and -, such as three-tier"
    )
    topology: TopologyDoc = Field(title="the network", description="topology: with segments and hosts")
    processes: dict[Name, ProcessDoc] = Field(
        {}, title="what can run on hosts", description="processes by name, such as api: {exe: /opt/shop/api}"
    )
    policy: PolicyDoc = Field(title="what every arm has to enforce", description="policy: with default and rules")
    traffic: TrafficDoc | None = Field(
        None,
        title="honest load; without it application latency is not measured",
        description="{clients: …, locustfile: …, rate: …}",
    )
    attack: AttackDoc | None = Field(
        None,
        title="the attacker; without it nothing is attacked",
        description="{foothold: {host: …, process: …}, goal: …}",
    )
    arms: list[str] | None = Field(
        None,
        min_length=1,
        title="what is compared; every arm that is installed if left out",
        description="a list of arms, such as [none, agent-nft]",
    )
    backend: Literal["mininet", "docker"] = Field(
        "mininet",
        title="what hosts are made of: namespaces, or containers of the machine's Docker engine",
        description="mininet or docker",
    )
    seed: int = Field(
        1, ge=0, le=2**32 - 1, title="decides everything random", description="a whole number from 0 to 4294967295"
    )
    replay: ReplayDoc | None = Field(
        None,
        title="recorded traffic, mostly written by an importer",
        description="{foreseen: [...], unforeseen: [...]}",
    )
    invented: list[str] = Field(
        [], title="what an importer made up, told with every result", description="a list of texts"
    )
