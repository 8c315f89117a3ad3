"""Orders to the switch's daemon: what they come to when it dies over them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from enforcers.agentless.switch.daemon import service


@pytest.fixture
def abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The ports whose links were taken away without a daemon."""
    ports: list[str] = []
    monkeypatch.setattr(service, "SOCKET", tmp_path / "sock")
    monkeypatch.setattr(service, "abandon", ports.append)
    yield ports


def asked(order: str, reads: int) -> int:
    """The status of an order to a daemon that ends after it has read so many bytes; of none if that is below 0."""
    if reads < 0:
        return service.ask(order, "p0", Path("port.json"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(service.SOCKET))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as client:
                client.recv(reads)

        daemon = threading.Thread(target=serve)
        daemon.start()
        try:
            return service.ask(order, "p0", Path("port.json"))
        finally:
            daemon.join()


@pytest.mark.parametrize("reads", [-1, 1, 65536])  # there is none; a reset; an end
def test_a_daemon_that_dies_over_an_order_is_one_line_or_nothing_to_leave(
        abandoned: list[str], reads: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked("collect", reads) == 1
    assert capsys.readouterr().err == "p0: no daemon answers at the switch\n" and abandoned == []
    service.SOCKET.unlink(missing_ok=True)
    assert asked("detach", reads) == 0
    assert capsys.readouterr().err == "" and abandoned == ["p0"]
