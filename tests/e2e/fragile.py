"""An enforcer with a planted fault, for the failure tests: its rules vanish with the process that loaded them.

The kernel takes a table that has an owner away when the owner's socket is closed (nft(8), flags owner).
"""

from __future__ import annotations

from dataclasses import replace

from enforcers.agent.agent_nft import AgentNft
from enforcers.nft import TABLE
from lab.model import Deployment, Native, Topology

HOLDER = '''
import ctypes, os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
nft = ctypes.CDLL("libnftables.so.1")
nft.nft_ctx_new.restype = ctypes.c_void_p
context = ctypes.c_void_p(nft.nft_ctx_new(0))
assert nft.nft_run_cmd_from_buffer(context, open("/run/host/fragile.nft", "rb").read()) == 0
open("/run/host/fragile.pid", "w").write(str(os.getpid()))
signal.pause()
'''
STOP = "kill $(cat /run/host/fragile.pid); rm -f /run/host/fragile.pid"


class Fragile(AgentNft):
    """The nftables agent's rules, held by a process that they die with; it cannot be updated while it stands."""

    name = "fragile"

    def render(self, native: Native, topology: Topology) -> Deployment:
        found = {}
        for point, plan in super().render(native, topology).items():
            rules = native.rules[point]
            begin = rules.index(f"table inet {TABLE} {{")
            owned = rules[begin:].replace("{", "{\n\tflags owner", 1)
            found[point] = replace(
                plan, files={"/run/host/fragile.py": HOLDER.encode(), "/run/host/fragile.nft": owned.encode()},
                up=(("setsid", "-f", "/usr/bin/python3", "-I", "/run/host/fragile.py"),),
                ready=("nft", "list", "table", "inet", TABLE), update=(), collect=(), down=(("/bin/sh", "-c", STOP),))
        return found
