"""Each way around a host agent that was met, tried on packets; what comes out, and the guard without which it differs.

A pitfall is a function of a bench that says what came out. `PITFALLS` tells what has to come out, and which guards are
to be compiled out (WITHOUT_…), or which hooks are to be left off, for the test to fail.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

from lab.isolation import RunIdentity
from tests.e2e import kernel_flows, kernel_owners
from tests.e2e.kernel_lab import CGROUP, TRACING, Bench, bench


class Pitfall(NamedTuple):
    """What has to come out, and what to leave off for it to come out otherwise. `fresh`: nothing attached yet."""

    tried: Callable[[Bench], Any]
    wanted: Any
    without: tuple[str, ...] = ()
    hooks_off: tuple[str, ...] = ()
    fresh: bool = False


DENIED = "EACCES"
PITFALLS = {p.tried.__name__: p for p in (
    Pitfall(kernel_owners.v4_mapped, ["OPEN", DENIED], ("CONNECT6",)),
    Pitfall(kernel_owners.asking_variants, [DENIED], ("CONNECT4",)),
    Pitfall(kernel_owners.io_uring, [["OPEN"] * 3, [DENIED] * 3], ("CONNECT4", "UNTAGGED")),
    Pitfall(kernel_owners.multipath, ["OPEN", DENIED], ("CONNECT4", "UNTAGGED")),
    Pitfall(kernel_owners.untagged, True, ("CONNECT6", "UNTAGGED")),
    Pitfall(kernel_owners.other_cgroup, DENIED, hooks_off=("connect4", "ingress", "egress")),
    Pitfall(kernel_owners.short_lived, 300, hooks_off=("on_state",)),
    Pitfall(kernel_owners.rewritten, DENIED, ("CTIME",)),
    Pitfall(kernel_owners.hard_link, ["OPEN", DENIED], ("PATH",)),
    Pitfall(kernel_owners.replaced, "OPEN", hooks_off=("on_exec", "on_fork")),
    Pitfall(kernel_owners.script, ["OPEN", DENIED], ("SCRIPTS",)),
    Pitfall(kernel_owners.by_user, ["OPEN", DENIED], hooks_off=("connect4", "ingress", "egress")),
    Pitfall(kernel_owners.forked_acceptor, "OPEN", hooks_off=("on_state",)),
    Pitfall(kernel_owners.activated, "OPEN", ("HEIR",)),
    Pitfall(kernel_owners.passed_on, "TIMED_OUT", ("ACCEPTOR",)),
    Pitfall(kernel_owners.gave_up_root, ["OPEN", "OPEN"], ("USER_CHANGE",)),
    Pitfall(kernel_owners.scm_rights, ["OPEN", [True]], hooks_off=("on_state",)),
    Pitfall(kernel_flows.connected_udp, "EPERM", ("EPOCH",)),
    Pitfall(kernel_flows.udp_arrives, [], ("UDP_IN",)),
    Pitfall(kernel_flows.fragments_pass, ["OPEN", "OPEN"], hooks_off=("post_bind4", "post_bind6")),
    Pitfall(kernel_flows.ports_next_user, ["OPEN", "EPERM"], ("PORT_OWNER",)),
    Pitfall(kernel_flows.icmp_out, ["OPEN"] * 4 + ["EPERM", "EPERM", "TIMED_OUT", "EPERM"], hooks_off=("egress",)),
    Pitfall(kernel_flows.icmp_in, ["TIMED_OUT", "TIMED_OUT"], hooks_off=("ingress",)),
    Pitfall(kernel_flows.raw_udp, "EPERM", ("RAW",)),
    Pitfall(kernel_flows.raw_refused, ["OPEN", "EPERM"], ("RAW",)),
    Pitfall(kernel_flows.packet_socket, [], hooks_off=("ingress",)),
    Pitfall(kernel_flows.same_host, [["OPEN"] * 4, [DENIED] * 4], ("SAME_HOST",)),
    Pitfall(kernel_flows.claimed, ["OPEN", "OPEN", "TIMED_OUT", "TIMED_OUT", True], ("CLAIMS",)),
    Pitfall(kernel_flows.idle_cut, [1, "ECONNRESET"], hooks_off=("on_state",)),
    Pitfall(kernel_flows.active_cut, "TIMED_OUT", ("EPOCH",)),
    Pitfall(kernel_flows.adopted, ["OPEN", "OPEN", [(True, "in")], True], ("ADOPTION",), fresh=True),
    Pitfall(kernel_flows.silence, [DENIED, "OPEN", "OPEN", DENIED], ("HEARTBEAT",)),
    Pitfall(kernel_flows.modes, ["OPEN", "OPEN", DENIED, "OPEN", ["would-deny", "would-deny", "deny"]],
            hooks_off=("on_state",)),
    Pitfall(kernel_flows.nothing_silent, [2500, True, True, True], hooks_off=("on_state",)),
    Pitfall(kernel_flows.records_tell, [True, 20001, "out", 1, 5, 5, True, 80, True, "in", 1, 5, 5, 80, True],
            hooks_off=("on_state",)),
)}


def try_all(me: RunIdentity, names: list[str]) -> dict[str, Any]:
    """What came out of each with every guard in place."""
    return {name: _try(me, PITFALLS[name]) for name in names}


def try_unguarded(me: RunIdentity, names: list[str]) -> dict[str, Any]:
    """The same, each without its own guards."""
    return {name: _try(me, PITFALLS[name], guarded=False) for name in names}


def _try(me: RunIdentity, pitfall: Pitfall, guarded: bool = True) -> Any:
    hooks = CGROUP + TRACING if guarded else tuple(h for h in CGROUP + TRACING if h not in pitfall.hooks_off)
    with bench(me, () if guarded else pitfall.without, () if pitfall.fresh else hooks) as w:
        try:
            return pitfall.tried(w)
        except (AssertionError, ValueError, subprocess.TimeoutExpired) as err:
            return f"{type(err).__name__}: {err}"
