"""The plants: what each puts in place, how it is measured, and what has to come out.

The arms are test enforcers that lie (`ARMS`); the figures come from the same experiment, instruments, analysis and
assembly as those of `labctl run`. A plant that passes has shown that its detector works on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.report.summary import Arm
from bench.selftest.intervals import STRICT, Interval, Outcome, against, difference, judged, share
from bench.selftest.measure import Lab, Measured
from lab.backends.base import Enforcement
from lab.model import TRIED_AGAIN, Flow, Service

# of lab.yaml
ASKED, DATAGRAMS, LEAKED, SILENT, BROKEN, RULE = 7000, range(7100, 7150), 7200, 7300, 7400, "administer"
SERVER_V4, SPARE, ENDS = "10.91.2.2", ("spare", "second"), ("client", "server")

WAIT_US, LOST, UNTOLD, CAP_BPS = 200, 0.10, 0.05, 6e8
# Of the bits on the wire, payload of TCP with timestamps in full Ethernet frames as the kernel's queue counts them.
PAYLOAD = 1448 / 1514
CAP_TOLERANCE = 0.03  # the bucket's first fill, and what the queue's clock leaves out
DRIFT_FROM_US, DRIFT_US_PER_S = 1000, 350
WIDE = 1.2  # high / low of an interval that cannot show the drift
VAGUE = 2.0  # high / low of one that would hold anything
# An exchange with a wait of 200 µs in it takes 3 to 7 µs more than that (measured; docs/selftest.md).
AFTERMATH = 0.05
DELAY_BLOCKS, CAP_BLOCKS, ORDER_BLOCKS = 12, 4, 20

_WAIT = {"address": SERVER_V4, "port": ASKED, "what": "syn"}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "honest": {},
    "leaks a port": {"leak": Service("tcp", LEAKED, LEAKED)},
    "leaks in silence": {"leak": Service("udp", SILENT, SILENT), "mute": SILENT},
    "drops a rule": {"drop_rule": RULE},
    "loses datagrams": {"lose_datagrams": (f"{DATAGRAMS.start}-{DATAGRAMS.stop - 1}", LOST)},
    "forgets": {"lose_telemetry": UNTOLD, "seed": 7},
    "answers at once": {"enforces": False, "delay": {**_WAIT, "what": "request", "wait_ns": 0}},
    "answers late": {"enforces": False, "delay": {**_WAIT, "what": "request", "wait_ns": WAIT_US * 1000}},
    "caps": {"enforces": False, "cap": {"address": SERVER_V4, "rate": f"{CAP_BPS / 1e6:.0f}mbit"}},
    "drifts": {"enforces": False, "delay": {**_WAIT, "wait_ns": DRIFT_FROM_US * 1000,
                                            "ramp_ns": DRIFT_US_PER_S * 1000}},
}


@dataclass(frozen=True, slots=True)
class Came:
    """What came out of one plant: in words, as an outcome, and as an interval where it is a figure."""

    planted: str
    found: str
    outcome: Outcome
    interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class Plant:
    """A name to ask for, what it shows, the parts of the lab that have to see it, and how it is tried."""

    name: str
    detector: str
    attempt: Callable[[Lab], Came]
    needs_bpf: bool = False


# --- verdicts -----------------------------------------------------------------------------------


def leaked_port(lab: Lab) -> Came:
    planted = _denied(lab, "tcp", LEAKED)
    return _counted(lab, "leaks a port", f"port {LEAKED}/tcp let through: {len(planted)} flows leak",
                    leaks=len(planted), defects=len(planted))


def silent_leak(lab: Lab) -> Came:
    planted = _denied(lab, "udp", SILENT)
    return _counted(lab, "leaks in silence",
                    f"port {SILENT}/udp let through, its answers dropped: {len(planted)} flows leak",
                    leaks=len(planted), defects=len(planted))


def dropped_rule(lab: Lab) -> Came:
    planted = lab.crossing(lambda f: lab.intended[f] and f.port == BROKEN)
    return _counted(lab, "drops a rule", f"rule '{RULE}' not enforced: {len(planted)} flows break",
                    breaks=len(planted), defects=len(planted))


def dead_server(lab: Lab) -> Came:
    with lab.dead(*SPARE):
        got = lab.measure("honest")
    asked = [f for f in lab.selection.flows if (f.target, f.target_process) == SPARE and _declared(lab, f)]
    return _compared(f"{SPARE[0]}'s listeners closed: {len(asked)} flows of which nothing can be said",
                     got.arm("honest"), _own(lab, got), inconclusive=len(asked))


def _declared(lab: Lab, flow: Flow) -> bool:
    return any(s.proto == flow.proto and s.low <= flow.port <= s.high
               for s in lab.scenario.topology.processes[flow.target_process].listens)


def _denied(lab: Lab, proto: str, port: int) -> list[Flow]:
    return lab.crossing(lambda f: not lab.intended[f] and (f.proto, f.port) == (proto, port))


def _counted(lab: Lab, arm: str, planted: str, **expected: int) -> Came:
    got = lab.measure(arm)
    return _compared(planted, got.arm(arm), _own(lab, got), **expected)


def _own(lab: Lab, got: Measured) -> int:
    """Leaks that the arm owns up to before: denied flows that stay within a segment and whose listener lives."""
    crossing = set(lab.crossing(lambda _f: True))
    control = {o.flow: o.outcome == "OPEN" for o in got.collected.records["none"].matrix.observations}
    return sum(not allow and flow not in crossing and control[flow] for flow, allow in lab.intended.items())


def _compared(planted: str, arm: Arm, own_leaks: int, **expected: int) -> Came:
    """All five counts have to be as planted: what was planted, and nothing beside it."""
    wanted = {"leaks": 0, "breaks": 0, "defects": 0, "inconclusive": 0, **expected}
    found = {"leaks": (arm.leaks or 0) - own_leaks, "breaks": arm.breaks, "defects": arm.defects,
             "inconclusive": arm.inconclusive}
    said = ", ".join(f"{found[name]} {name}" for name in wanted)
    return Came(planted, said, "PASS" if found == wanted else "FAIL")


def loss(lab: Lab) -> Came:
    got = lab.measure("loses datagrams")
    arm, tried = got.arm("loses datagrams"), len(lab.crossing(lambda f: lab.intended[f] and f.port in DATAGRAMS))
    found = share(arm.breaks or 0, tried, STRICT)
    # A probe sends one datagram an attempt, so what the rule set dropped is what has to have failed, one for one:
    # each broken flow once, and some again when they were tried alone (bench.second_look).
    dropped = got.planted("loses datagrams").get("dropped")
    exact = dropped is None or (dropped == _unanswered(lab, got) and arm.breaks == arm.defects)
    outcome = judged(found, LOST, 0.0)
    return Came(f"{LOST:.0%} of the datagrams to {len(DATAGRAMS)} ports lost"
                + (f": {dropped} dropped" if dropped is not None else ""),
                f"{arm.breaks} of {tried} flows broken: {_percent(found)}",
                outcome if exact or outcome != "PASS" else "FAIL", found)


def _unanswered(lab: Lab, got: Measured) -> int:
    """The attempts of the matrix at datagrams that may pass, and that failed, those of the second look too."""
    asked = {(f.source, f.process, f.target, f.port)
             for f in lab.crossing(lambda f: lab.intended[f] and f.port in DATAGRAMS)}
    return sum(truth.outcome != "OPEN" for truth in got.collected.records["loses datagrams"].truths
               if truth.kind in ("probe", TRIED_AGAIN)
               and (truth.source, truth.process, truth.target, truth.dport) in asked and truth.proto == "udp")


# --- telemetry ----------------------------------------------------------------------------------


def lost_telemetry(lab: Lab) -> Came:
    got = lab.measure("honest", "forgets")
    seen = {name: got.arm(name).visibility["flow"] for name in ("honest", "forgets")}
    honest, forgets = seen["honest"].recall or 0.0, seen["forgets"]
    told, due = round((forgets.recall or 0.0) * forgets.n), round(honest * forgets.n)
    found = share(max(due - told, 0), max(due, 1), STRICT)
    return Came(f"{UNTOLD:.0%} of the flows that it saw never told of",
                f"{told} told of {due} that the honest one saw: {_percent(found)} untold",
                judged(found, UNTOLD, 0.0), found)


# --- costs --------------------------------------------------------------------------------------


def delay(lab: Lab) -> Came:
    lab.alone(*ENDS)
    got = lab.measure("answers at once", "answers late", blocks=DELAY_BLOCKS)
    planted = (got.planted("answers late").get("wait_p50_ns", WAIT_US * 1e3)
               - got.planted("answers at once").get("wait_p50_ns", 0.0)) / 1e3
    late, prompt = (got.blocks(name, "rr_p50_us") for name in ("answers late", "answers at once"))
    found, shown = difference(late, prompt, STRICT), difference(late, prompt)
    outcome = judged(found, planted, 0.0, tolerance=AFTERMATH)
    return Came(f"{planted:.1f} µs more for every request, as the kernel timed it",
                f"request p50 {_us(shown)} longer", outcome, shown)


def rate_cap(lab: Lab) -> Came:
    got = lab.measure("caps", blocks=CAP_BLOCKS, bulk=True)
    planted, uncapped = CAP_BPS * PAYLOAD, got.arm("none").cost["bulk_bps"].value
    found = against(got.blocks("caps", "bulk_bps"), planted)
    if found.value is None or found.low is None or found.high is None or uncapped is None:
        outcome: Outcome = "NOISY"
    elif uncapped < planted * 1.5 or found.high / found.low > WIDE:
        outcome = "NOISY"  # the machine itself is hardly faster, or stalls: the cap would show nothing
    else:
        outcome = "PASS" if found.holds(1.0, CAP_TOLERANCE) and 0.9 < found.value < 1.1 else "FAIL"
    value = "nothing" if found.value is None else f"{found.value * planted / 1e6:.0f} Mb/s, {_ratio(found)} of that"
    return Came(f"{planted / 1e6:.0f} Mb/s of payload at most ({CAP_BPS / 1e6:g} on the wire)", value, outcome, found)


# --- order --------------------------------------------------------------------------------------


def biased_order(lab: Lab) -> Came:
    """`none` against itself on a machine that tires in every block: in one order, and then in shuffled ones."""
    lab.alone(*ENDS)
    shown: dict[bool, Interval] = {}
    differs: dict[bool, bool] = {}
    for shuffled in (False, True):
        with lab.under("drifts") as weather:
            got = lab.measure(blocks=ORDER_BLOCKS, shuffled=shuffled, before_block=lambda w=weather: _afresh(w))  # type: ignore[misc]
        figure = got.summary.aa.cost["crr_p50_us"]
        shown[shuffled] = Interval(figure.ratio, figure.low, figure.high)
        differs[shuffled] = "crr_p50_us" in got.summary.aa.differs
    fixed, mixed = shown[False], shown[True]
    found = f"none against itself: in one order {_ratio(fixed)}, in shuffled orders {_ratio(mixed)}"
    if mixed.low is None or fixed.low is None or fixed.high is None:
        outcome: Outcome = "NOISY"
    elif not differs[False]:  # an interval that is wide, or misses 1 by less than a family of figures allows
        outcome = "NOISY" if fixed.high / fixed.low > WIDE else "FAIL"
    elif mixed.high is None or mixed.high / mixed.low > VAGUE:
        outcome = "NOISY"
    else:
        outcome = "PASS" if mixed.holds(1.0) and not differs[True] and (fixed.low > 1.0) else "FAIL"
    return Came(f"every exchange {DRIFT_US_PER_S} µs slower each second of a block: an effect in one order only",
                found, outcome, mixed)


def _afresh(weather: Enforcement) -> None:
    weather.down()
    weather.up()


PLANTS = (
    Plant("leaked-port", "matrix: what is open though denied", leaked_port),
    Plant("silent-leak", "proof of arrival from the target", silent_leak),
    Plant("dropped-rule", "matrix: what is not open though allowed", dropped_rule),
    Plant("dead-server", "positive control under none", dead_server),
    Plant("loss", "matrix: a datagram needs its answer", loss),
    Plant("lost-telemetry", "truth matched with sightings", lost_telemetry),
    Plant("rate-cap", "bulk throughput", rate_cap),
    Plant("delay", "latency in microseconds, paired by block", delay, needs_bpf=True),
    Plant("biased-order", "shuffled order, and none against itself", biased_order, needs_bpf=True),
)


def _percent(found: Interval) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "nothing"
    return f"{found.value:.1%} [{found.low:.1%}–{found.high:.1%}]"


def _us(found: Interval) -> str:
    if found.value is None:
        return "by nobody knows how much"
    ends = "no interval" if found.low is None or found.high is None else f"{found.low:.1f}–{found.high:.1f}"
    return f"{found.value:.1f} µs [{ends}]"


def _ratio(found: Interval) -> str:
    if found.value is None:
        return "nothing"
    ends = "no interval" if found.low is None or found.high is None else f"{found.low:.3f}–{found.high:.3f}"
    return f"×{found.value:.3f} [{ends}]"
