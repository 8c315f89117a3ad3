"""The daemon as one file, the same byte for byte wherever it is built, and the plan that guards one port."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

from enforcers.zipapp import PYTHON, archive, package
from lab.bpf.build import compiled
from lab.model import PointPlan

DIRECTORY = "/run/switch"
_MAIN = b"import sys\nfrom switchd.cli import main\nsys.exit(main(sys.argv[1:]))\n"
_BORROWED = ("__init__.py", "bpf/__init__.py", "bpf/libbpf.py", "bpf/ring.py", "bpf/syscall.py")


@cache
def daemon_zipapp() -> bytes:
    """switch.pyz: the daemon's package, what it needs of lab.bpf, and a `__main__`."""
    borrowed = {f"lab/{name}": (files("lab") / name).read_bytes() for name in _BORROWED}
    return archive(package(f"{__package__}.daemon", "switchd") | borrowed | {"__main__.py": _MAIN})


@cache
def program(flags: tuple[str, ...] = ()) -> bytes:
    """switch.o, compiled with these `flags` too. Raises BpfBuildError where it is not compiled yet and cannot be."""
    return compiled(Path(str(files(__package__) / "switch.bpf.c")), flags=flags)


def port_plan(host: str, document: str) -> PointPlan:
    """What to place and run for the port of `host`; `document` says who the host is, and maybe the whole policy."""
    place = f"{DIRECTORY}/{host}"

    def command(order: str) -> tuple[str, ...]:
        return (*PYTHON, f"{place}/switch.pyz", order, "--file", f"{place}/port.json")

    return PointPlan(
        files={f"{place}/switch.pyz": daemon_zipapp(), f"{place}/switch.o": program(),
               f"{place}/port.json": document.encode()},
        up=(command("attach"),), ready=command("ready"), update=(command("update"),), collect=command("collect"),
        down=(command("detach"),))
