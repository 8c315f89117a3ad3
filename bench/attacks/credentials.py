"""T1021, remote services with found credentials, and T1570, the transfer of a tool to a host that is held."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

from bench.attacks.ground import DROP_DIR, DROPPED, Ground
from bench.attacks.technique import Came, NotHereError, Technique, came
from lab.model import Host

REMOTE_PORT = 22
LOGIN, FLAG, FOUND = "/run/host/attack/login", "/run/host/attack/flag", "/srv/.credentials"
TOOL_PORT, TOOL_PATH = 4444, f"{DROP_DIR}/received"


def _log_in(ground: Ground) -> Came:
    """A file of the foothold's host holds a login; the dropped binary tries it wherever it can find the service."""
    here = ground.foothold.host
    hosts = [h for h in ground.topology.hosts.values() if h.name != here and ground.listens(h, "tcp", REMOTE_PORT)]
    if not hosts:
        raise NotHereError("no other host of the scenario offers 22/tcp")
    login = ground.secret(24).hex().encode()
    ground.put(here, FOUND, login)
    flags = {host.name: ground.secret(24).hex() for host in hosts}
    with contextlib.ExitStack() as stack:
        for host in hosts:
            stack.enter_context(_remote(ground, host, login, flags[host.name]))
        dropped, found = ground.dropped(here), {}
        services = [(address, REMOTE_PORT) for address in ground.networks(here)]
        for service, got in zip(services, ground.probe(dropped, services), strict=True):
            if got.connect_us is not None and not ground.allowed(dropped, service):
                said = ground.tool(here, DROPPED, "login", service[0], str(REMOTE_PORT), FOUND)
                found[ground.name(service[0])] = said["flag"]
    through = sorted(name for name, flag in found.items() if flag == flags.get(name))
    return came(bool(through), f"logged in at {', '.join(through) or 'no host'}; {len(found)} took the connection")


@contextlib.contextmanager
def _remote(ground: Ground, host: Host, login: bytes, flag: str) -> Iterator[None]:
    process = ground.listens(host, "tcp", REMOTE_PORT)
    ground.put(host.name, LOGIN, login)
    ground.put(host.name, FLAG, flag.encode())
    with ground.borrowed(host.name, process, "tcp", REMOTE_PORT), \
            ground.running(host.name, process, "remote", str(REMOTE_PORT), LOGIN, FLAG, ready=True):
        yield


def _transfer(ground: Ground) -> Came:
    """The tool goes to a host that is held, on a port of the attacker's own, and proves itself by running there."""
    here = ground.foothold.host
    target = ground.another()
    program = b"import sys\nprint(sys.argv[1][::-1])\n# " + ground.secret(40_000).hex().encode() + b"\n"
    source, nonce = ground.put(here, "/run/host/attack/carried", program), ground.secret(16).hex()
    with ground.running(target.name, DROPPED, "receive", "tcp", str(TOOL_PORT), TOOL_PATH, ready=True) as receiver:
        ground.tool(here, DROPPED, "send", "tcp", target.v4, str(TOOL_PORT), source)
        got = receiver.finish()
    ran = ground.testbed.run(target.name, ["/usr/bin/python3", "-IS", TOOL_PATH, nonce]).stdout.decode().strip()
    whole = got["sha256"] == hashlib.sha256(program).hexdigest() and ran == nonce[::-1]
    return came(whole, f"{got['bytes']:,} of {len(program):,} bytes came to {target.name}"
                       f"{' and ran there' if whole else ''}")


TECHNIQUES = (
    Technique("credentials", "T1021", "Remote services with found credentials",
              "a login lies in a file that the taken process can read",
              "the remote host told a secret that only a login reveals", _log_in),
    Technique("tool-transfer", "T1570", "Lateral tool transfer", "another host is held already",
              "the same bytes arrived and ran there", _transfer),
)
