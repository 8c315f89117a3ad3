"""The agent as files, the same byte for byte wherever they are made, and the plan that runs it on a host."""

from __future__ import annotations

import io
import marshal
import zipfile
from functools import cache
from importlib.resources import files
from importlib.util import MAGIC_NUMBER, source_hash
from pathlib import Path

from lab.bpf.build import compiled, native
from lab.model import PointPlan

AGENT_DIR = "/run/host/agent-ebpf"
PYTHON = ("/usr/bin/python3", "-I", "-S")  # no site packages, no environment: the standard library alone
_MAIN = "import sys\nfrom daemon.cli import run\nrun(sys.argv[1:])\n"
# Not `python3 agent.pyz`, which imports a fifth of the standard library first, to find out what that is.
_RUN = "import sys; sys.path.insert(0, sys.argv[1]); from daemon.cli import run; run(sys.argv[2:])"
_UNCHECKED = 1  # PEP 552: by the source's hash, and nobody looks whether it is still that one
_BINDING = ("__init__.py", "clsact.py", "libbpf.py", "ring.py", "syscall.py")  # of the lab's, standard library alone
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip file can say


@cache
def zipapp() -> bytes:
    """agent.pyz: the daemon's package, the binding to the kernel and a `__main__`; uncompressed, since zlib varies.

    With bytecode, since compiling is most of what a command would take; a Python of another version takes the source.
    """
    sources = {f"daemon/{item.name}": item.read_bytes() for item in files("enforcers.agent.ebpf.daemon").iterdir()
               if item.name.endswith(".py")}
    sources |= {f"lab/bpf/{name}": (files("lab.bpf") / name).read_bytes() for name in _BINDING}
    sources["lab/__init__.py"] = b""
    sources["__main__.py"] = _MAIN.encode()
    sources |= {f"{name}c": _bytecode(name, source) for name, source in sources.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(sources):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system, entry.external_attr = 3, 0o600 << 16
            archive.writestr(entry, sources[name])
    return b"#!/usr/bin/python3 -IS\n" + buffer.getvalue()


def _bytecode(name: str, source: bytes) -> bytes:
    """A .pyc of nothing but the source: form 2 of marshal leaves out which objects happened to be shared."""
    code = compile(source, name, "exec", dont_inherit=True, optimize=2)
    return MAGIC_NUMBER + _UNCHECKED.to_bytes(4, "little") + source_hash(source) + marshal.dumps(code, 2)


def program() -> bytes:
    """The kernel's programs, compiled on this machine at set-up."""
    return compiled(Path(str(files("enforcers.agent.ebpf.kernel") / "agent.bpf.c")))


def client() -> bytes:
    """What carries `start` and `ready` out where an agent runs already, compiled on this machine at set-up."""
    return native(Path(str(files("enforcers.agent.ebpf.client") / "ask.c")))


def quick(host: str, verb: str) -> tuple[str, ...]:
    """The same command, asked by a small program that leaves to it what it does not know itself."""
    return (f"{AGENT_DIR}/ask", verb, host, AGENT_DIR, *command(host, verb))


def command(host: str, verb: str, *more: str) -> tuple[str, ...]:
    """A command of the agent on `host`, which answers in JSON where it has something to say."""
    return (*PYTHON, "-c", _RUN, f"{AGENT_DIR}/agent.pyz", verb, "--host", host, "--dir", AGENT_DIR, *more)


def plan(host: str, policy: bytes, tables: bytes, program: bytes, client: bytes) -> PointPlan:
    """What to place and run on one host: the agent, the kernel's program, the host's policy."""
    return PointPlan(
        files={
            f"{AGENT_DIR}/agent.pyz": zipapp(),
            f"{AGENT_DIR}/agent.bpf.o": program,
            f"{AGENT_DIR}/ask": client,
            f"{AGENT_DIR}/policy.json": policy,
            f"{AGENT_DIR}/tables.bin": tables,
        },
        up=(quick(host, "start"),),
        ready=quick(host, "ready"),
        update=(command(host, "update"),),
        collect=command(host, "collect"),
        down=(command(host, "stop"),),
    )
