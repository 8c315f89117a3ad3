"""How labctl speaks with a Docker engine, and removes what a run has in it: a server of the tests' own answers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from lab import runs
from lab.backends import docker_engine, docker_left
from tests.e2e.isolated import ROOT


class Engine:
    """Holds objects by path and answers as an engine would; `asked` is what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refuses: set[str] = set()
        self.ends: dict[str, dict[str, str]] = {}  # of networks: name of a container by the key that the engine tells
        self.held = {"containers": {"c1": "labctl-1", "c2": "labctl-2"}, "networks": {"n1": "labctl-1", "n2": ""},
                     "images": {"i1": "labctl-1"}}

    def answer(self, verb: str, path: str, body: bytes = b"") -> tuple[int, object]:
        self.asked.append(f"{verb} {path}")
        if path.endswith("/disconnect"):
            network, ended = self.ends[path.split("/")[2]], json.loads(body)
            self.ends[path.split("/")[2]] = {k: n for k, n in network.items() if n != ended["Container"]}
            return 200, ""
        kind, what = path.lstrip("/").partition("?")[0].split("/", 1) if "/" in path[1:] else (path[1:], "")
        kind = kind.partition("?")[0]
        if path == "/_ping":
            return 200, "OK"
        if verb == "GET" and "filters=" not in path:
            return 200, {"Containers": {key: {"Name": name} for key, name in self.ends.get(what, {}).items()}}
        if verb == "GET":
            import urllib.parse

            wanted = json.loads(urllib.parse.unquote(path.partition("filters=")[2]))["label"][0].partition("=")[2]
            return 200, [{"Id": i, "Name": i} for i, run in self.held[kind].items() if run == wanted]
        if what in self.refuses:
            return 500, {"message": "no"}
        if self.ends.get(what):
            return 403, {"message": f"network {what} has active endpoints"}
        return (200, "") if self.held[kind].pop(what, None) is not None else (404, "")


@contextmanager
def serving(path: Path, engine: Engine) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            said = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = engine.answer(self.command, self.path, said)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_DELETE = do_POST = _answer

        def log_message(self, *_: object) -> None:
            pass

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                Handler(connection, ("", 0), None)  # type: ignore[arg-type]

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield str(path)
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_only_what_carries_the_run_s_label_goes(tmp_path: Path) -> None:
    engine = Engine()
    with serving(tmp_path / "s", engine) as path:
        assert docker_left.left(path, "labctl-1") == ["container c1", "network n1", "image i1"]
        docker_left.remove(path, "labctl-1")
    assert engine.held == {"containers": {"c2": "labctl-2"}, "networks": {"n2": ""}, "images": {}}
    kinds = [line.split("/")[1] for line in engine.asked if line.startswith("DELETE")]
    assert kinds == ["containers", "networks", "images"]  # each is in use by those before it


def test_what_an_engine_refuses_for_a_moment_is_asked_for_again(tmp_path: Path) -> None:
    engine = Engine()
    engine.refuses = {"c1"}
    threading.Timer(0.3, engine.refuses.clear).start()
    with serving(tmp_path / "s", engine) as path:
        docker_left.remove(path, "labctl-1")
    assert engine.held["containers"] == {"c2": "labctl-2"} and engine.held["networks"] == {"n2": ""}


def test_ends_that_the_engine_counts_though_their_containers_are_gone_are_let_go(tmp_path: Path) -> None:
    engine = Engine()
    engine.ends["n1"] = {"ep-1": "labctl-1-web", "ep-2": "labctl-1-db"}
    with serving(tmp_path / "s", engine) as path:
        docker_left.remove(path, "labctl-1")
    assert engine.held["networks"] == {"n2": ""}


def test_a_container_of_the_user_s_own_in_the_run_s_network_stays_and_the_refusal_is_told(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_left, "_REFUSED_S", 0.2)
    engine = Engine()
    engine.ends["n1"] = {"9f": "mine", "ep-2": "labctl-12-web"}
    with serving(tmp_path / "s", engine) as path, pytest.raises(docker_left.EngineGoneError) as caught:
        docker_left.remove(path, "labctl-1")
    assert engine.ends["n1"] == {"9f": "mine", "ep-2": "labctl-12-web"} and "n1" in engine.held["networks"]
    assert "active endpoints" in str(caught.value) and "; docker network disconnect n1 mine" in str(caught.value)


_ALONE = """
import ctypes, sys, threading
from lab.backends import docker_left
assert ctypes.CDLL(None).unshare(0x10000000 | 0x20000000) == 0  # CLONE_NEWUSER, CLONE_NEWPID
try:
    threading.Thread(target=print).start()
except RuntimeError:
    docker_left.remove(sys.argv[1], "labctl-1")
else:
    sys.exit("threads start here, and the test shows nothing")
"""


def test_whoever_has_left_its_process_namespace_removes_it_too(tmp_path: Path) -> None:
    """As the parent of a run has: the kernel gives it no threads any more."""
    engine = Engine()
    with serving(tmp_path / "s", engine) as path:
        done = subprocess.run([sys.executable, "-c", _ALONE, path], cwd=ROOT, capture_output=True, text=True,
                              timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert engine.held == {"containers": {"c2": "labctl-2"}, "networks": {"n2": ""}, "images": {}}


def test_what_a_dead_run_had_asked_for_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine carries out what it was asked, also where nobody waits for the answer any more."""
    monkeypatch.setattr(docker_left, "_COMING_S", 20.0)
    engine = Engine()

    def asked(after_s: float) -> list[str]:
        with pytest.raises(KeyboardInterrupt), docker_left.making(tmp_path, "container", "late"):
            raise KeyboardInterrupt
        threading.Timer(after_s, engine.held["containers"].__setitem__, ("late", "labctl-1")).start()
        return docker_left.coming(tmp_path)

    with serving(tmp_path / "s", engine) as path:
        coming = asked(0.3)
        assert coming == ["container late"]
        docker_left.remove(path, "labctl-1")
        docker_left.remove(path, "labctl-1", coming)
        assert "late" not in engine.held["containers"] and "DELETE /containers/late?force=1&v=1" in engine.asked


def test_what_was_answered_is_not_waited_for(tmp_path: Path) -> None:
    with docker_left.making(tmp_path, "container", "app"):
        assert docker_left.coming(tmp_path) == ["container app"]
    with pytest.raises(RefusedError), docker_left.making(tmp_path, "image", "labctl/host:1"):
        raise RefusedError
    assert docker_left.coming(tmp_path) == []
    with pytest.raises(TimeoutError), docker_left.making(tmp_path, "image", "labctl/host:1"):
        raise TimeoutError
    assert docker_left.coming(tmp_path) == ["image labctl/host:1"], "the engine may still come to it"


class RefusedError(OSError):
    """As docker.errors.APIError: it has what the engine answered."""

    response = "409 Conflict"


def test_what_an_engine_refuses_to_remove_keeps_the_run_in_the_registry(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    monkeypatch.setattr(docker_left, "_REFUSED_S", 0.2)
    monkeypatch.setattr(runs, "registry", lambda: tmp_path / "registry")
    directory = tmp_path / "registry" / "labctl-00000001"
    directory.mkdir(parents=True)
    engine.held["containers"]["c3"] = "labctl-00000001"
    with serving(tmp_path / "s", engine) as path:
        (directory / docker_left.MARK).write_text(path)
        engine.refuses = {"c3"}
        assert runs.sweep(None) == ["container c3", f"directory {directory}"]
        assert directory.exists()
        engine.refuses = set()
        runs.sweep(None)
        assert not directory.exists() and "c3" not in engine.held["containers"]


def test_an_engine_that_is_silent_is_asked_again_later_one_that_is_gone_is_not(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "registry", lambda: tmp_path / "registry")
    directory = tmp_path / "registry" / "labctl-00000001"
    directory.mkdir(parents=True)
    (directory / docker_left.MARK).write_text(str(tmp_path / "docker.sock"))
    (line, _directory) = runs.leftovers(None)
    assert "once it answers" in line and "labctl-00000001" in line
    runs.sweep(None)
    assert directory.exists()
    (directory / docker_left.MARK).write_text(str(tmp_path / "gone" / "docker.sock"))
    runs.sweep(None)
    assert not directory.exists()


@pytest.mark.parametrize(("address", "said"), [
    ("tcp://127.0.0.1:2375", "DOCKER_HOST is tcp://127.0.0.1:2375, and containers of a lab have to be on this machine"),
    ("ssh://me@there", "set it to unix:///var/run/docker.sock, or unset it"),
    ("unix:///nonexistent/docker.sock", "does not answer (No such file or directory); start it, or set DOCKER_HOST"),
])
def test_an_engine_that_cannot_be_used_is_one_line(address: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    with pytest.raises(docker_engine.EngineError) as caught:
        docker_engine.reach()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_one_that_answers_is_reached_by_a_path_that_outlives_its_mount(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "s", Engine()) as path:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        reached = docker_engine.reach()
        assert reached.path == path
        (tmp_path / "s").rename(tmp_path / "elsewhere")
        assert docker_left.ask(reached.inside, "GET", "/_ping")[0] == 200
