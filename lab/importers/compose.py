"""A compose file as a scenario: services, networks, ports and dependencies; what it could not carry over is listed.

The policy is the least that the file speaks of: who depends on a service may use its ports, and whoever is outside may
use those that are published. Pure but for reading the file. Format: the Compose Specification (compose-spec.io).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = ["ComposeError", "Imported", "import_compose"]

OUTSIDE, CLIENT = "outside", "client"
# Where a file leaves it to the image: the port that its documentation names, and where its program lies.
KNOWN: Mapping[str, tuple[str, str]] = {
    "nginx": ("80/tcp", "/usr/sbin/nginx"), "httpd": ("80/tcp", "/usr/local/apache2/bin/httpd"),
    "redis": ("6379/tcp", "/usr/local/bin/redis-server"), "valkey": ("6379/tcp", "/usr/local/bin/valkey-server"),
    "memcached": ("11211/tcp", "/usr/local/bin/memcached"), "rabbitmq": ("5672/tcp", "/opt/erlang/bin/erl"),
    "postgres": ("5432/tcp", "/usr/lib/postgresql/bin/postgres"), "mysql": ("3306/tcp", "/usr/sbin/mysqld"),
    "mariadb": ("3306/tcp", "/usr/sbin/mariadbd"), "mongo": ("27017/tcp", "/usr/bin/mongod"),
}  # fmt: skip
_CARRIED = {"image", "build", "command", "entrypoint", "ports", "expose", "networks", "depends_on", "links",
            "environment", "scale", "deploy", "container_name", "x-labctl"}  # fmt: skip
_NO_MATTER = {"restart", "healthcheck", "labels", "logging", "stdin_open", "tty", "init", "stop_grace_period",
              "pull_policy"}
_VARIABLE = re.compile(r"\$\{(\w+)(?::?([-?+])([^}]*))?\}|\$(\w+)")


class ComposeError(RuntimeError):
    """The file is no compose file; the message is one line: file, place, what to do."""


@dataclass(frozen=True, slots=True)
class Imported:
    """The scenario's text, how much is in it, and as sentences what was not carried over or had to be made up."""

    text: str
    hosts: int
    rules: int
    left_out: tuple[str, ...]
    invented: tuple[str, ...]


@dataclass(slots=True)
class _Draft:
    """What is being put together."""

    source: str
    built_in: bool
    segments: dict[str, Any] = field(default_factory=dict)
    hosts: dict[str, Any] = field(default_factory=dict)
    processes: dict[str, Any] = field(default_factory=dict)
    rules: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    invented: list[str] = field(default_factory=list)


def import_compose(file: Path, *, built_in: bool = False, arms: Iterable[str] = ("none", "agent-nft", "chokepoint"),
                   name: str | None = None) -> Imported:
    """The scenario of a compose file. Raises ComposeError.

    Its services are the file's own images, on Docker; `built_in`: labctl's services in their place, on any backend.
    """
    document = _read(file)
    services = document.get("services")
    if not isinstance(services, dict) or not services:
        raise ComposeError(f"{file}: services: there are none; a compose file names at least one")
    for service, body in services.items():
        if not isinstance(body, dict):
            raise ComposeError(f"{file}: services.{service}: is not a mapping; write image: … or build: … under it")
    draft = _Draft(str(file), built_in)
    draft.left_out += [f"{key}: the file's top-level '{key}'" for key in document
                       if key not in ("services", "networks", "name", "version") and not key.startswith("x-")]
    project = _name(str(name or document.get("name") or file.resolve().parent.name))
    for service, body in services.items():
        _service(draft, _name(service), body, project)
    for service, body in services.items():
        _rules(draft, _name(service), body)
    _published(draft, services)
    if not draft.rules:
        draft.left_out.append("the file names no dependency and publishes no port: its policy allows nothing")
    scenario = {
        "version": 1, "name": project, **({} if built_in else {"backend": "docker"}),
        "topology": {"segments": draft.segments, "hosts": draft.hosts}, "processes": draft.processes,
        "policy": {"default": "deny", "rules": draft.rules}, "arms": list(arms),
        "invented": [*draft.invented, *(f"not carried over: {text}" for text in draft.left_out)],
    }  # fmt: skip
    head = f"# Made by labctl import compose of {file.name}.\n"
    text = head + yaml.safe_dump(scenario, sort_keys=False, width=110, allow_unicode=True, default_flow_style=None)
    return Imported(text, len(draft.hosts), len(draft.rules), tuple(draft.left_out), tuple(draft.invented))


# --- a service ----------------------------------------------------------------------------------


def _service(draft: _Draft, name: str, body: Mapping[str, Any], project: str) -> None:
    """Its host, its process and the segment that it is in."""
    own = body.get("x-labctl") or {}
    networks = list(body.get("networks") or ["default"])
    segment = _name(str(networks[0]))
    draft.segments.setdefault(segment, {})
    if len(networks) > 1:
        draft.left_out.append(f"{name}: it is in {', '.join(map(str, networks[1:]))} too; here it is in {networks[0]}, "
                              "and reaches the others through the router")
    host: dict[str, Any] = {"segment": segment, "labels": {"service": name}, "runs": [name]}
    if (count := _count(body)) > 1:
        host["count"] = count
    if body.get("build") and not body.get("image"):
        draft.left_out.append(f"{name}: how it is built; its image is taken for {project}-{name}, as compose names it")
    image = str(_text(draft, name, body.get("image") or f"{project}-{name}"))
    base = image.rpartition("/")[2].partition(":")[0].partition("@")[0]
    listens = _listens(draft, name, body, base)
    process: dict[str, Any] = {"user": own.get("user", "svc")}
    if draft.built_in:
        process |= {"exe": f"/opt/{name}/{name}"}
        draft.left_out.append(f"{name}: its image {image}; a built-in service stands in for it")
    else:
        host["image"] = image
        command = _command(draft, name, body)
        process |= {"exe": own.get("exe") or _exe(draft, name, command, base), "command": command}
        if environment := _environment(draft, name, body.get("environment")):
            process["environment"] = environment
    if listens:
        process["listens"] = listens
    draft.hosts[name], draft.processes[name] = host, process
    for key in body:
        if key not in _CARRIED and key not in _NO_MATTER and not key.startswith("x-"):
            draft.left_out.append(f"{name}: its {key}")


def _count(body: Mapping[str, Any]) -> int:
    deploy = body.get("deploy") or {}
    count = body.get("scale") or (deploy.get("replicas") if isinstance(deploy, dict) else None) or 1
    return count if isinstance(count, int) and 1 <= count <= 1000 else 1


def _command(draft: _Draft, name: str, body: Mapping[str, Any]) -> list[str]:
    """Entry point and command as one list; empty where the file leaves both to the image."""
    entrypoint, command = (_words(_text(draft, name, body.get(key))) for key in ("entrypoint", "command"))
    if command and not entrypoint:
        draft.invented.append(f"{name}: its command replaces all that its image starts, an entry point too")
    return [*entrypoint, *command]


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        return shlex.split(value)
    return [str(word) for word in value or ()]


def _exe(draft: _Draft, name: str, command: list[str], base: str) -> str:
    if command and command[0].startswith("/"):
        return command[0]
    guess = f"/usr/bin/{command[0]}" if command else KNOWN.get(base, ("", f"/usr/local/bin/{base}"))[1]
    draft.invented.append(f"{name}: its program is taken for {guess}; say it with x-labctl: {{exe: …}}")
    return guess


def _environment(draft: _Draft, name: str, value: Any) -> dict[str, str]:
    if isinstance(value, list):
        value = dict(str(text).partition("=")[::2] for text in value)
    return {str(key): str(_text(draft, name, "" if text is None else text)) for key, text in (value or {}).items()}


def _text(draft: _Draft, name: str, value: Any) -> Any:
    """`value` with variables replaced by the defaults that the file gives; one without a default is empty, and told."""
    if isinstance(value, list):
        return [_text(draft, name, one) for one in value]
    if not isinstance(value, str) or "$" not in value:
        return value

    def replaced(match: re.Match[str]) -> str:
        variable, kind, default = match[1] or match[4], match[2], match[3]
        if kind == "-":
            return default or ""
        draft.left_out.append(f"{name}: the variable {variable}, which the file gives no default")
        return ""

    return _VARIABLE.sub(replaced, value.replace("$$", "\0")).replace("\0", "$")


# --- ports --------------------------------------------------------------------------------------


def _listens(draft: _Draft, name: str, body: Mapping[str, Any], base: str) -> list[str]:
    found = [service for port in [*(body.get("ports") or ()), *(body.get("expose") or ())]
             if (service := _port(draft, name, port))]
    if not found and base in KNOWN:
        found = [KNOWN[base][0]]
        draft.invented.append(f"{name}: the file names no port; {found[0]} is what an image called {base} listens on")
    return list(dict.fromkeys(found))


def _port(draft: _Draft, name: str, port: Any) -> str | None:
    """`80/tcp` of any way to write a port: the container's end of it."""
    if isinstance(port, dict):
        text, proto = str(port.get("target", "")), str(port.get("protocol", "tcp"))
    else:
        text, _, proto = str(_text(draft, name, str(port))).rpartition(":")[2].partition("/")
    if re.fullmatch(r"[0-9]{1,5}(-[0-9]{1,5})?", text) and proto in ("tcp", "udp", ""):
        return f"{text}/{proto or 'tcp'}"
    draft.left_out.append(f"{name}: the port {port}")
    return None


# --- policy -------------------------------------------------------------------------------------


def _rules(draft: _Draft, name: str, body: Mapping[str, Any]) -> None:
    """Who depends on a service may use what it listens on."""
    needed = [*(body.get("depends_on") or ()), *(str(link).partition(":")[0] for link in body.get("links") or ())]
    for other in dict.fromkeys(_name(str(one)) for one in needed):
        listens = draft.processes.get(other, {}).get("listens")
        if not listens:
            draft.left_out.append(f"{name}: that it depends on {other}, which listens on nothing that the file names")
            continue
        draft.rules.append({"name": f"{name} uses {other}"[:63], "allow": {
            "from": {"service": name}, "to": {"service": other}, "service": list(listens)}})


def _published(draft: _Draft, services: Mapping[str, Mapping[str, Any]]) -> None:
    """Whoever is outside may use published ports: one host stands for them."""
    for name, body in services.items():
        ports = [service for port in body.get("ports") or () if (service := _port(draft, _name(name), port))]
        if ports:
            draft.rules.append({"name": f"published by {_name(name)}"[:63], "allow": {
                "from": {"host": CLIENT}, "to": {"service": _name(name)}, "service": list(dict.fromkeys(ports))}})
    if any(rule["allow"]["from"] == {"host": CLIENT} for rule in draft.rules):
        draft.segments[OUTSIDE] = {}
        draft.hosts[CLIENT] = {"segment": OUTSIDE, "external": True, "runs": ["visitor"]}
        draft.processes["visitor"] = {"exe": "/opt/visitor/visitor"}
        draft.invented.append(f"'{CLIENT}' in segment '{OUTSIDE}' stands for all who use published ports")


# --- the rim ------------------------------------------------------------------------------------


def _name(text: str) -> str:
    """A name of the scenario's kind of any name that compose allows."""
    return re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")[:40] or "service"


def _read(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text())
    except OSError as err:
        raise ComposeError(f"{file}: cannot be read ({err.strerror}); name a compose file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        where = f":{mark.line + 1}" if (mark := getattr(err, "problem_mark", None)) else ""
        problem = getattr(err, "problem", None) or str(err).splitlines()[0]
        raise ComposeError(f"{file}{where}: is not YAML: {problem}") from None
    if not isinstance(document, dict):
        raise ComposeError(f"{file}: is not a compose file; it has to have services: …")
    return document
