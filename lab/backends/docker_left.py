"""What a run has in a Docker engine, and how it goes: by the run's id, the label of all of it. Standard library only.

Whoever removes it may be the run itself, its reaper, or the next command that labctl runs.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
import urllib.parse
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

LABEL = "labctl.run"
_AT_ONCE = 8
_TIMEOUT_S = 60.0
_COMING_S, _LOOK_S = 10.0, 0.05
_REFUSED_S = 20.0  # an engine that is busy refuses what it does a moment later


class EngineGoneError(RuntimeError):
    """The engine does not answer, or refuses; the message says what it said."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket; `host` is its path."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.host)


def ask(engine: str, verb: str, path: str, timeout_s: float = _TIMEOUT_S, body: object = None) -> tuple[int, bytes]:
    """Status and body of one request to the engine whose unix socket is `engine`; `body` goes as JSON. Raises
    EngineGoneError."""
    return _ask_at_once(engine, verb, [path], timeout_s, body)[0]


def _ask_at_once(engine: str, verb: str, paths: Sequence[str], timeout_s: float = _TIMEOUT_S,
                 body: object = None) -> list[tuple[int, bytes]]:
    """As `ask`, for several that the engine carries out at once. Without threads: whoever has left its process
    namespace, as the parent of a run has, gets none from the kernel."""
    headers = {"Host": "docker", "Content-Type": "application/json"}
    try:
        with ExitStack() as closing:
            connections = []
            for path in paths:
                connections.append(UnixConnection(engine, timeout=timeout_s))
                closing.callback(connections[-1].close)
                connections[-1].request(verb, path, None if body is None else json.dumps(body), headers)
            answers = (connection.getresponse() for connection in connections)
            return [(answer.status, answer.read()) for answer in answers]
    except (OSError, http.client.HTTPException) as err:
        said = os.strerror(err.errno) if isinstance(err, OSError) and err.errno else str(err) or type(err).__name__
        raise EngineGoneError(f"the Docker engine at {engine} does not answer ({said})") from None


def left(engine: str, run_id: str) -> list[str]:
    """What the engine holds of a run, a line each. Raises EngineGoneError."""
    return [f"{kind} {name}" for kind, _path, name in _objects(engine, run_id)]


def remove(engine: str, run_id: str, coming: Collection[str] = ()) -> None:
    """Remove every container, network and image of a run, and nothing else. Raises EngineGoneError.

    `coming`: what a run that died had asked the engine for (`making`). The engine carries out what it was asked, also
    where nobody waits any more, so each is waited for; one that it never heard of costs the whole wait.
    """
    awaited, deadline = set(coming), time.monotonic() + _COMING_S
    while True:
        found = list(_objects(engine, run_id))
        awaited -= {f"{kind} {name}" for kind, _path, name in found}
        _remove(engine, run_id, found)
        if not awaited or time.monotonic() > deadline:
            return
        time.sleep(_LOOK_S)  # the engine tells of what it makes, but not to who comes later


def _remove(engine: str, run_id: str, found: Collection[tuple[str, str, str]]) -> None:
    for kind in ("container", "network", "image"):  # each is in use by those before it
        paths, deadline = [path for of, path, _name in found if of == kind], time.monotonic() + _REFUSED_S
        while refused := _delete(engine, paths):
            paths = list(refused)
            if time.monotonic() > deadline:
                raise _refusal(engine, kind, paths[0], refused[paths[0]])
            if kind == "network":
                _release(engine, run_id, paths)
            time.sleep(_LOOK_S)


def _delete(engine: str, paths: Sequence[str]) -> dict[str, str]:
    """Delete these; what the engine says, by path, of those that it does not delete now."""
    refused = {}
    for at in range(0, len(paths), _AT_ONCE):
        some = paths[at:at + _AT_ONCE]
        for path, answer in zip(some, _ask_at_once(engine, "DELETE", some), strict=True):
            status, body = answer
            if status == 409 and b"already in progress" in body:  # somebody else removes it: wait until that is done
                status, body = ask(engine, "POST", path.partition("?")[0] + "/wait?condition=removed")
            if status >= 300 and status != 404:
                refused[path] = f"{status}: {body.decode(errors='replace').strip()}"
    return refused


def _refusal(engine: str, kind: str, path: str, said: str) -> EngineGoneError:
    joined = _ends(engine, path) if kind == "network" else ()
    leave = [f"; docker network disconnect {path.rpartition('/')[2][:12]} {name}" for name in joined]
    return EngineGoneError(f"the Docker engine at {engine} does not remove {path} ({said}){''.join(leave)}")


def _release(engine: str, run_id: str, networks: Sequence[str]) -> None:
    """Have the engine forget the ends of the run's containers in these networks: it may count them when they are gone
    ("has active endpoints"; seen once, with 50 containers on a busy machine). Ends of anybody else's stay."""
    for path in networks:
        for name in _ends(engine, path):
            if name.startswith(f"{run_id}-"):
                ask(engine, "POST", f"{path}/disconnect", body={"Container": name, "Force": True})


def _ends(engine: str, network: str) -> list[str]:
    """Names of the containers that the engine counts in a network."""
    status, body = ask(engine, "GET", network)
    return [end["Name"] for end in (json.loads(body).get("Containers") or {}).values()] if status == 200 else []


def _objects(engine: str, run_id: str) -> Iterator[tuple[str, str, str]]:
    """(kind, path of the resource, name) of all that carries the run's label."""
    filters = urllib.parse.quote(json.dumps({"label": [f"{LABEL}={run_id}"]}))
    for kind, listing, resource in (("container", "/containers/json?all=1&filters=", "/containers/{}?force=1&v=1"),
                                    ("network", "/networks?filters=", "/networks/{}"),
                                    ("image", "/images/json?filters=", "/images/{}?force=1")):
        status, body = ask(engine, "GET", listing + filters)
        if status != 200:
            raise EngineGoneError(f"the Docker engine at {engine} answers {status}")
        for one in json.loads(body) or ():
            yield kind, resource.format(urllib.parse.quote(one["Id"])), _name(one)


def _name(one: dict[str, object]) -> str:
    names = one.get("Names") or one.get("RepoTags") or [one.get("Name") or one["Id"]]
    return str(names[0]).lstrip("/")  # type: ignore[index]


# --- by the registry of runs ---

MAKING = "making"  # in a run's directory: a file for each request to make something that the engine has not answered
MARK = "engine"  # in a run's directory: the path of the socket of the engine that holds something of it


def engine_of(directory: Path) -> str | None:
    """The engine that a run has made something in, if one is left to ask: none where its very directory is gone."""
    try:
        engine = (directory / MARK).read_text()
    except OSError:
        return None
    return engine if Path(engine).parent.is_dir() else None


@contextmanager
def making(directory: Path, kind: str, name: str) -> Iterator[None]:
    """Meanwhile whoever finds the run dead knows what may still come: a `kind` of this name."""
    asked = directory / MAKING / urllib.parse.quote(f"{kind} {name}", safe="")
    asked.parent.mkdir(mode=0o700, exist_ok=True)
    asked.touch(mode=0o600)
    try:
        yield
    except Exception as err:
        if getattr(err, "response", None) is not None:  # a refusal is an answer; who waited in vain has none yet
            asked.unlink()
        raise
    asked.unlink()


def coming(directory: Path) -> list[str]:
    """What a run asked the engine for and may not have got before it died, as `remove` takes it."""
    try:
        return [urllib.parse.unquote(asked.name) for asked in (directory / MAKING).iterdir()]
    except OSError:
        return []
