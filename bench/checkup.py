"""One look at this machine: tools, features, conditions and arms. Takes under two seconds and leaves nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict

from bench.catalogue import catalogue
from bench.installed import Arm, Checkup, Entry, Features
from lab import conditions, features, packages
from lab.features import Lack
from lab.isolation import IsolationError, RunIdentity, run_isolated


def examine() -> Checkup:
    """Look at everything. Conditions first: the other looks would be among the busy neighbours."""
    facts = conditions.facts()
    busy = tuple(conditions.busiest())
    tools, entries = packages.look(), catalogue()
    found = probe()
    # what a new network namespace is like is told from inside of one, all else from outside
    facts["bridge_nf_call_iptables"] = found.facts.get("bridge_nf_call_iptables", facts["bridge_nf_call_iptables"])
    missing = packages.missing_packages()
    return Checkup(tools, missing, found, conditions.judge(facts), busy, arms(entries, found, missing))


def arms(entries: Sequence[Entry], found: Features, missing: Sequence[str]) -> tuple[Arm, ...]:
    """Every arm, and why it cannot run where it cannot."""
    return tuple(_arm(entry, found, missing) for entry in entries)


def probe() -> Features:
    """Try every feature, in namespaces like a run's. This process can start no other afterwards."""
    outside = features.probe_all(outside=True)
    answer = os.fdopen(os.memfd_create("labctl-features"), "w+")

    def body(_me: RunIdentity) -> int:
        json.dump({"lacks": {name: asdict(lack) if lack else None
                             for name, lack in features.probe_all(outside=False).items()},
                   "facts": conditions.facts(0.05)}, answer)
        answer.flush()
        return 0

    with answer:
        try:
            status = run_isolated(body, "run", "(doctor)")
        except IsolationError as err:
            return Features(outside, refused=str(err).removeprefix("labctl: "))
        answer.seek(0)
        text = answer.read()
    if status or not text:
        return Features(outside, refused=f"a run's private world came to nothing (status {status})")
    told = json.loads(text)
    inside = {name: Lack(**lack) if lack else None for name, lack in told["lacks"].items()}
    return Features({name: (inside | outside)[name] for name in features.CHECKS}, told["facts"])


def _arm(entry: Entry, found: Features, missing: Sequence[str]) -> Arm:
    if entry.broken:
        return Arm(entry, (entry.broken,), ("mend or uninstall its package",))
    lacks = [(need.name, found.lacks.get(need.name, features.UNKNOWN)) for need in entry.needs]
    why = [f"{name}: {lack.problem}" for name, lack in lacks if lack]
    remedies = [lack.remedy for _name, lack in lacks if lack]
    if missing:
        why.insert(0, f"packages are missing: {' '.join(missing)}")
        remedies.insert(0, packages.apt_line(missing))
    if found.refused:
        why, remedies = [found.refused], ["allow user namespaces, or run labctl as root"]
    return Arm(entry, tuple(why), tuple(dict.fromkeys(remedies)))
