"""`labctl attack --every-foothold --shared`: blast radius of every foothold, from edges proven with real packets."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench.analysis import paths
from bench.attack_labs import Lab, Say, Tell, each, standing
from bench.campaigning import everything_vulnerable
from bench.instruments.survey import survey
from bench.report import lateral as report
from bench.report.shared import Arm, Shared
from lab import confines
from lab.isolation import RunIdentity, heed_interrupt
from lab.model import Scenario

RULES = (paths.EVERYTHING, paths.TENTH)
TOLD_S = 5.0


def shared(scenario: Scenario, arms: Sequence[str], say: Say) -> Shared:
    """Every position surveyed once under every arm. Raises AttackError.

    All services of the lab obey the exploit, so that every edge is proven; a rule by which fewer are vulnerable takes
    of these edges the ones that lead to them.
    """
    found: dict[str, Arm] = {}
    lab_scenario = everything_vulnerable(scenario)

    def take(arm: str, message: dict[str, object]) -> None:
        found[arm] = Arm.model_validate({**found.get(arm, Arm()).model_dump(), **message})

    def work(arm: str, me: RunIdentity, tell: Tell) -> int:
        with standing(lab_scenario, arm, me, say, tell) as lab:
            if lab is not None:
                tell({"devices": confines.check(lab.testbed)})
                tell(_surveyed(lab, say))
        return 0

    interrupted = each(lab_scenario, arms, work, take)
    return Shared(scenario=scenario.name, interrupted=interrupted, arms=found)


def _surveyed(lab: Lab, say: Say) -> dict[str, object]:
    topology, seed, begin, told = lab.scenario.topology, lab.scenario.seed, time.monotonic(), [0.0]

    def progress(made: int, of: int) -> None:
        heed_interrupt()
        if time.monotonic() - told[0] > TOLD_S:
            told[0] = time.monotonic()
            say(f"{lab.enforcer.name}: {made:,} of {of:,} scans, {told[0] - begin:.0f} s")

    got = survey(lab.testbed.services, topology, seed, progress)
    spread = {rule: report.spread(paths.Positions(got.proven, topology, takeable).spread())
              for rule, takeable in paths.rules(topology, seed).items() if rule in RULES}
    return {"scanned": got.scanned, "opened": got.opened, "exploits": got.exploits, "proven": len(got.proven),
            "again": got.again, "differed": list(got.differed[:20]), "differ": len(got.differed),
            "seconds": round(time.monotonic() - begin, 1),
            "spread": {rule: one.model_dump() for rule, one in spread.items()}}
