"""TLS handshakes a second along a TCP flow.

The server is `openssl s_server`, not the built-in service, which speaks no TLS; it borrows the service's port and user.
The client is Python's ssl (OpenSSL too): TLS 1.3, a P-256 certificate, nothing resumed, one handshake after the other.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.instruments import as_declared, onhost
from lab.backends.base import HostProcess, Testbed
from lab.model import Flow

_PEM = "/run/host/load/server.pem"


@dataclass(frozen=True, slots=True)
class Handshakes:
    """`took_us`: from before the TCP connect to the end of the handshake, in order. `cpu_s` is the client's."""

    per_s: float | None
    errors: int
    took_us: NDArray[np.float64]
    cpu_s: float
    software: str


@cache
def certificate() -> bytes:
    """A key and its self-signed certificate (P-256), made once a process. Raises OSError where openssl is missing."""
    with tempfile.TemporaryDirectory() as place:
        key, cert = Path(place, "key.pem"), Path(place, "cert.pem")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=lab"],
                       check=True, capture_output=True)
        return key.read_bytes() + cert.read_bytes()


def measure(testbed: Testbed, flow: Flow, seconds: float) -> Handshakes:
    """Handshakes along `flow` for `seconds`; `onhost.place` first. Raises ProgramError, OSError."""
    address = testbed.topology.hosts[flow.target].address(flow.family)
    testbed.put(flow.target, {_PEM: certificate()})
    openssl = as_declared.placed(testbed, flow.target, flow.target_process, as_declared.installed("openssl", "openssl"))
    with onhost.lent_port(testbed, flow):
        # Its complaints about clients that hang up are not ours to show.
        server = testbed.spawn(flow.target, ["sh", "-c", f"exec {openssl} s_server -accept {flow.port} -cert {_PEM} "
                                             f"-key {_PEM} -no_ticket -www 2>/dev/null"], process=flow.target_process)
        try:
            _await_accepting(server, flow.target)
            got = onhost.client(testbed, flow.source, "tls", address, str(flow.port), str(seconds),
                                process=flow.process)
        finally:
            testbed.run(flow.target, ["kill", str(server.pid)])
            server.wait(5.0)  # only then is the port free again
            server.kill()
    n = got["handshakes"]
    return Handshakes(n / got["seconds"] if n else None, got["errors"], np.array(got["took_us"]), got["cpu_s"],
                      f"{got['cipher']}, client {got['library']}, server openssl s_server")


def _await_accepting(server: HostProcess, host: str) -> None:
    for line in server.stdout:
        if line.startswith(b"ACCEPT"):
            return
    raise onhost.ProgramError(f"tls: openssl s_server on {host} ended before it accepted; is openssl installed?")
