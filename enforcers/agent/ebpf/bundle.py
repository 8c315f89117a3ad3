"""The agent as files, the same byte for byte wherever they are made, and the plan that runs it on a host."""

from __future__ import annotations

import marshal
from functools import cache
from importlib.resources import files
from importlib.util import MAGIC_NUMBER, source_hash
from pathlib import Path

from enforcers.zipapp import PYTHON, archive, beside, package
from lab.bpf.build import compiled, native
from lab.model import PointPlan

AGENT_DIR = "/run/host/agent-ebpf"
NODE_DIR = "/run/host/agent-ebpf-node"
_MAIN = b"import sys\nfrom daemon.cli import run\nrun(sys.argv[1:])\n"
# Not `python3 agent.pyz`, which imports a fifth of the standard library first, to find out what that is.
_RUN = "import sys; sys.path.insert(0, sys.argv[1]); from daemon.cli import run; run(sys.argv[2:])"
_UNCHECKED = 1  # PEP 552: by the source's hash, and nobody looks whether it is still that one
_BINDING = ("lab.bpf.clsact", "lab.bpf.libbpf", "lab.bpf.ring", "lab.bpf.syscall")  # standard library alone


@cache
def zipapp() -> bytes:
    """agent.pyz: the daemon's package, the binding to the kernel and a `__main__`.

    With bytecode, since compiling is most of what a command would take; a Python of another version takes the source.
    """
    sources = package("enforcers.agent.ebpf.daemon", "daemon")
    sources |= beside("enforcers.agent.background", *_BINDING)
    sources["__main__.py"] = _MAIN
    return archive(sources | {f"{name}c": _bytecode(name, source) for name, source in sources.items()})


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


def command(host: str, verb: str, *more: str, directory: str = AGENT_DIR) -> tuple[str, ...]:
    """A command of the agent on `host`, which answers in JSON where it has something to say."""
    return (*PYTHON, "-c", _RUN, f"{directory}/agent.pyz", verb, "--host", host, "--dir", directory, *more)


def on_node(host: str) -> str:
    """Where the agent of a container host has what it needs for one of its containers."""
    return f"{NODE_DIR}/{host}"


def node_plan(host: str, policy: bytes, tables: bytes, program: bytes) -> PointPlan:
    """What to place and run on the machine that carries `host` as a container. Nothing is placed in the container."""
    place = on_node(host)

    def order(verb: str) -> tuple[str, ...]:
        return command(host, verb, directory=place)

    return PointPlan(
        files={f"{place}/agent.pyz": zipapp(), f"{place}/agent.bpf.o": program, f"{place}/policy.json": policy,
               f"{place}/tables.bin": tables},
        up=(order("start"),), ready=order("ready"), update=(order("update"),), collect=order("collect"),
        down=(order("stop"),))


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
