"""From what was collected to the summary: the only place where raw data meets the analysis. Pure but for the clock."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

from bench import lateral, load_figures, second_look
from bench.analysis import matrices, reach
from bench.analysis.bootstrap import CONFIDENCE
from bench.analysis.sequential import LOOK_CONFIDENCE
from bench.analysis.visibility import visibility
from bench.arms import Arm, ArmRecord
from bench.blocks import AA
from bench.costs import Costs
from bench.experiment import BASELINE, DEFAULT_BLOCKS, LEAST_BLOCKS, RUN_S, Collected
from bench.load_figures import Loads
from bench.report import summary as report
from bench.report.lateral import Lateral
from bench.report.summary import FIGURES, FigureName, Summary
from bench.second_look import Looked
from lab.model import Flow, Observation, Outcome
from lab.policy_sets import Oracle


def summary(collected: Collected) -> Summary:
    """The summary of a run, whole or interrupted."""
    took = time.monotonic() - collected.begun
    intended, costs = _verdicts(collected), costs_of(collected)
    loads = Loads(collected.load, tuple(collected.records))
    moved = _lateral(collected)
    ran = {name: _arm(collected, name, record, intended, costs).model_copy(
               update={"load": loads.arm(name), "lateral": moved.get(name)})
           for name, record in collected.records.items()}
    refused = {name: report.Arm(unsupported=reason) for name, reason in collected.unsupported.items()}
    return Summary(
        labctl=version("microseg-labctl"), scenario=collected.scenario.name, seed=collected.scenario.seed,
        started=(datetime.now(UTC) - timedelta(seconds=took)).isoformat(timespec="seconds"), duration_s=took,
        quick=collected.options.quick, until=_until(collected), interrupted=collected.interrupted,
        invalid=tuple(_invalid(collected)), blocks=len(costs.numbers),
        arms={name: (ran | refused)[name] for name in collected.enforcers if name in ran | refused},
        aa=report.aa({f: report.figure(effect, costs.raw(AA, f), costs.plain(AA, f), costs.adjusts(AA, f))
                      for f, effect in costs.again.items()}, loads.arm(AA)) if collected.cells else report.AA(
                          load=loads.arm(AA)),
        mde={f: costs.mde(f) for f in FIGURES} if collected.cells else {},
        knee=load_figures.knee(collected.load), environment=collected.environment,
        notes=tuple(_notes(collected, costs)))


def costs_of(collected: Collected) -> Costs:
    """The run's cells, judged. A run that may stop by its intervals takes them wider, so that they still cover 95 %."""
    confidence = LOOK_CONFIDENCE if collected.options.until else CONFIDENCE
    return Costs(tuple(collected.cells), tuple(collected.records), confidence)


def exit_status(found: Summary) -> int:
    """130 interrupted, 4 invalid, 1 a defect, else 0: the gravest for whoever relies on the figures comes first."""
    if found.interrupted:
        return 130
    if found.invalid:
        return 4
    return 1 if any(arm.defects or (arm.spoofing and arm.spoofing.defects) for arm in found.arms.values()) else 0


def _verdicts(collected: Collected) -> list[bool]:
    scenario = collected.scenario
    return [v.allow for v in Oracle(scenario.policy, scenario.topology).verdicts(collected.selection.flows)]


def _arm(collected: Collected, name: str, record: ArmRecord, intended: Sequence[bool], costs: Costs) -> report.Arm:
    arm, topology = collected.arms[name], collected.scenario.topology
    matrix = _matrix(collected, arm, record, intended)
    seen = visibility(record.truths, record.sightings, topology)
    recalls, blind_spots, several = report.recalls(seen), seen.blind_spots, _several_users(collected)
    if not several:  # what all have in common tells nobody apart
        recalls["user"] = report.Recall(recall=None, n=0)
        blind_spots = tuple(spot for spot in blind_spots if " user of " not in spot)
    gaps = matrices.gap_classes(matrix.rows, topology, arm.native.approximations)
    return report.Arm(
        **report.verdicts(matrix), strained=len(record.looked.strained),
        findings=tuple(_findings(matrix, record.looked)),
        gap_classes=report.gap_classes(gaps), cost=_cost(costs, name), verified=_verified(collected, name),
        visibility=recalls, blind_spots=blind_spots,
        coverage=report.coverage(seen, tuple(f for f in report.FIELDS if several or f != "user")),
        attack=_attack(collected, record), spoofing=_spoofing(collected, name, record),
        unforeseen=_replayed(collected, record, foreseen=False),
        foreseen=_replayed(collected, record, foreseen=True), policy=_policy(arm),
        deploy=report.Deploy(seconds=record.installed.seconds,
                             bytes_per_host=record.installed.bytes_per_host if record.installed.points else None),
        footprint=_footprint(collected, record))


def _matrix(collected: Collected, arm: Arm, record: ArmRecord, intended: Sequence[bool]) -> matrices.Matrix:
    topology, flows = collected.scenario.topology, collected.selection.flows
    covered = [arm.enforcer.covers(flow, topology) for flow in flows]
    expected = second_look.expected(arm.enforcer, arm.native, flows, topology)
    return matrices.matrix(flows, intended=intended, expected=expected, covered=covered,
                           observed=_by_flow(record.matrix.observations),
                           baseline=_by_flow(collected.records[BASELINE].matrix.observations), topology=topology)


def _by_flow(observations: Sequence[Observation]) -> dict[Flow, Observation]:
    return {o.flow: o for o in observations}


def _findings(matrix: matrices.Matrix, looked: Looked, most: int = 20) -> list[str]:
    """The first defects and inconclusive flows, in words, so that the summary says what to look at."""
    wanted = [row for row in matrix.rows if row.defect] + [row for row in matrix.rows if row.inconclusive]
    return [f"{row.finding}: {row.flow}: expected {'allow' if row.expected else 'deny'}, "
            f"observed {_observed(row, looked)}" for row in wanted[:most]]


def _observed(row: matrices.Row, looked: Looked) -> str:
    if row.flow in looked.unsettled:
        return "a failure that came once, and never again alone or among as many"
    if row.observed is None:
        return "nothing"
    return f"{row.observed.outcome}{', arrived' if row.observed.arrived else ''}"


def _cost(costs: Costs, name: str) -> dict[FigureName, report.Figure]:
    """Every figure of one arm against the baseline of the same blocks; the baseline's own are 1 by definition."""
    if not costs.cells:
        return {}
    return {f: report.figure(costs.effects(f)[name], costs.raw(name, f), costs.plain(name, f), costs.adjusts(name, f))
            for f in FIGURES}


def _until(collected: Collected) -> report.Until | None:
    look, options = collected.look, collected.options
    if look is None or options.until is None:
        return None
    return report.Until(target=options.until, reached=look.enough, arm=look.name, needed=look.needed,
                        widest=look.widest if math.isfinite(look.widest) else None, budget_s=options.budget_s)


def _verified(collected: Collected, name: str) -> report.Verified | None:
    cells = [cell for cell in collected.cells if cell.arm == name]
    if not cells:
        return None
    return report.Verified(n=sum(c.verified for c in cells), wrong=sum(c.contradicted for c in cells))


def _attack(collected: Collected, record: ArmRecord) -> report.Attack | None:
    attack, campaign = collected.scenario.attack, record.campaign
    if attack is None or campaign is None:
        return None
    hosts = collected.scenario.topology.hosts
    return report.Attack(
        reached=campaign.reached, time_to_goal_s=campaign.time_to_goal_s, taken=campaign.taken,
        blast_radius=reach.blast_radius(campaign.taken, hosts, attack.foothold_host),
        blast_radius_by_process=reach.blast_radius(campaign.by_process, hosts, attack.foothold_host),
        attempts=campaign.attempts)


def _spoofing(collected: Collected, name: str, record: ArmRecord) -> report.Spoofing | None:
    """Judged where the baseline let it arrive. Who says that it stops spoofing is believed, and held to it."""
    control = {forgery for forgery, arrived in collected.records[BASELINE].forged if arrived}
    tried = [(forgery, arrived) for forgery, arrived in record.forged if forgery in control]
    if not tried:
        return None
    hosts, enforcer = collected.scenario.topology.hosts, collected.arms[name].enforcer
    got_in = [forgery for forgery, arrived in tried if arrived]
    claimed = [one for one in got_in if getattr(enforcer, "stops_spoofing", False) and not hosts[one.sender].external]
    return report.Spoofing(n=len(tried), arrived=len(got_in), defects=len(claimed),
                           example=str(got_in[0]) if got_in else None)


def _lateral(collected: Collected) -> dict[str, Lateral]:
    """What each arm's matrix offers an attacker; a sample would hide ways, so of one nothing is said."""
    if collected.selection.sampled:
        return {}
    return lateral.laterals(collected.scenario, {name: lateral.observed(record.matrix.observations)
                                                 for name, record in collected.records.items()})


def _disagreement(collected: Collected, name: str, record: ArmRecord) -> list[str]:
    """Hosts that were taken though the matrix says they are out of reach: probe and attack must not disagree."""
    attack, campaign = collected.scenario.attack, record.campaign
    if attack is None or campaign is None or collected.selection.sampled:
        return []
    walked = reach.reachable(record.matrix.observations, collected.scenario.topology, attack.foothold_host,
                             attack.foothold_process)
    odd = sorted(set(campaign.taken) - set(walked.hosts) - {attack.foothold_host})
    return [f"{name}: the attacker took {', '.join(odd)}, which the matrix has out of reach"] if odd else []


def _replayed(collected: Collected, record: ArmRecord, *, foreseen: bool) -> report.Unforeseen | None:
    """Of the recorded legitimate flows, those that the policy was (not) learnt from: how many the arm broke."""
    wanted = {r.flow for r in collected.scenario.replay if r.foreseen is foreseen}
    if not record.replayed.observations:
        return None
    baseline = _by_flow(collected.records[BASELINE].replayed.observations)
    judged = [o for o in record.replayed.observations
              if o.flow in wanted and baseline[o.flow].outcome is Outcome.OPEN]
    broken = sum(o.outcome is not Outcome.OPEN for o in judged)
    return report.Unforeseen(n=len(judged), broken=broken, share=broken / len(judged) if judged else None)


def _policy(arm: Arm) -> report.Policy:
    kinds = [a.kind for a in arm.native.approximations]
    return report.Policy(native_rules=arm.native.count, widened=kinds.count("widened"),
                         narrowed=kinds.count("narrowed"), omitted=kinds.count("omitted"))


def _footprint(collected: Collected, record: ArmRecord) -> report.Footprint | None:
    """What the arm used while it was examined, beside hosts (memory: the mean of those it is on) and off them."""
    if not record.daemon_cpu_s:
        return None
    hosts = collected.scenario.topology.hosts
    rss = [size for host, size in record.daemon_rss_bytes.items() if host in hosts and size]
    off_hosts = sum(size for host, size in record.daemon_rss_bytes.items() if host not in hosts)
    return report.Footprint(
        host_rss_bytes=sum(rss) / len(rss) if rss else None, off_host_rss_bytes=off_hosts or None,
        host_cpu_s=sum(spent for host, spent in record.daemon_cpu_s.items() if host in hosts),
        off_host_cpu_s=sum(spent for host, spent in record.daemon_cpu_s.items() if host not in hosts),
        kernel_s=_in_kernel(record))


def _in_kernel(record: ArmRecord) -> float | None:
    """What the headers of the telemetry tell of time in kernel programs (`kernel_s`), all points together."""
    told = [json.loads(note[note.index("{"):]) for note in record.notes if "kernel_s" in note]
    spent = [float(one["kernel_s"]) for one in told if one["kernel_s"] is not None]
    return sum(spent) if spent else None


def _several_users(collected: Collected) -> bool:
    return collected.environment.get("several_users", True) is True


def _notes(collected: Collected, costs: Costs) -> list[str]:
    notes = [f"{name}: {said}" for name in collected.records
             if (said := getattr(collected.enforcers[name], "caveat", ""))]
    notes += [f"{name}: the machine's own speed read otherwise under it than under none, so its costs are as measured"
             for name in costs.moved]
    notes += [f"{name}: its visits were not steady when the windows that count began: its costs hold part of its "
              "start" for name in costs.unsteady]
    notes += [f"{name}: new connections of block {', '.join(map(str, blocks))} do not count: the machine changed its "
              "speed within nearly every window" for name, blocks in costs.restless("crr_rate").items()]
    if not _several_users(collected):
        notes.append("run without root: every process ran as one and the same user, so who saw the user was not "
                     "measured; with Debian's uidmap and a range in /etc/subuid and /etc/subgid it would be")
    if collected.environment.get("cgroup2") is False:
        notes.append("CPU and memory were not measured: no cgroup v2 that this user may write to")
    if collected.scenario.backend != "mininet":
        notes.append(f"hosts are containers ({collected.scenario.backend}): compare costs with results of this backend "
                     "only; verdicts and reach with any")
    if collected.measured:
        notes.append(f"costs were taken along {collected.measured}")
    if collected.options.fits and not collected.interrupted and LEAST_BLOCKS <= len(costs.numbers) < DEFAULT_BLOCKS:
        notes.append(f"{len(costs.numbers)} of {DEFAULT_BLOCKS} blocks fit into {RUN_S / 60:.0f} minutes; for more: "
                     "--blocks or --until")
    if collected.selection.sampled:
        notes.append(f"the matrix is a seeded, stratified sample: {len(collected.selection.flows)} of "
                     f"{collected.selection.total} flows")
    spoilt = [cell for cell in collected.cells if cell.spoilt]
    if spoilt:
        tried = sum("app_p50_us" in cell.figures for cell in collected.cells)
        notes.append(f"application latency does not count in {len(spoilt)} of {tried} windows, "
                     f"first: {spoilt[0].spoilt[0]}")
    if collected.scenario.traffic is None:
        notes.append("the scenario has no traffic: application latency was not measured")
    return notes + [f"invented: {text}" for text in collected.scenario.invented]


def _invalid(collected: Collected) -> list[str]:
    """Why figures of this run must not be used; a whole run needs more than a stray block to be invalid."""
    cells = collected.cells
    spoilt: Mapping[str, int] = {name: sum(1 for c in cells if c.arm == name and c.invalid)
                                 for name in {c.arm for c in cells}}
    blocks = len({c.block for c in cells})
    found = [f"{name}: {bad} of {blocks} blocks do not count, first: {_first_reason(collected, name)}"
             for name, bad in sorted(spoilt.items()) if bad * 2 > blocks]
    odd = [text for name, record in collected.records.items() for text in _disagreement(collected, name, record)]
    return [*collected.invalid, *found, *load_figures.invalid(collected.load), *odd]


def _first_reason(collected: Collected, name: str) -> str:
    return next(cell.invalid[0] for cell in collected.cells if cell.arm == name and cell.invalid)
