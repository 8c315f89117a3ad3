"""`labctl attack --techniques`: for each arm a lab of its own, all techniques in it, then what its telemetry saw."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.analysis.visibility import match
from bench.attack_labs import FAILURES, Lab, Say, Tell, each, standing
from bench.attacks.catalogue import DROWNING
from bench.attacks.ground import Ground
from bench.attacks.technique import Came, DeniedError, NotHereError, Technique
from bench.report.techniques import Arm, Techniques, Tried
from lab import confines
from lab.isolation import RunIdentity, heed_interrupt
from lab.model import Scenario, Sighting, Truth


def techniques(scenario: Scenario, arms: Sequence[str], chosen: Sequence[Technique], say: Say) -> Techniques:
    """Every technique under every arm. Raises AttackError."""
    found: dict[str, Arm] = {}

    def take(arm: str, message: dict[str, object]) -> None:
        one = found.setdefault(arm, Arm())
        if "unsupported" in message or "devices" in message:
            found[arm] = one.model_copy(update=message)
        elif "technique" in message:
            tried = {**one.tried, str(message["technique"]): Tried.model_validate(message["tried"])}
            found[arm] = one.model_copy(update={"tried": tried})

    def work(arm: str, me: RunIdentity, tell: Tell) -> int:
        return _Trial(scenario, arm, me, chosen, say, tell).run()

    interrupted = each(scenario, arms, work, take)
    return Techniques(scenario=scenario.name, interrupted=interrupted, arms=found)


@dataclass(slots=True)
class _Span:
    """The part of the record that one technique made."""

    name: str
    came: Came
    seconds: float
    truths: list[Truth] = field(default_factory=list)


class _Trial:
    """One arm's lab, from up to down."""

    def __init__(self, scenario: Scenario, arm: str, me: RunIdentity, chosen: Sequence[Technique], say: Say,
                 tell: Tell) -> None:
        self.scenario, self.arm, self.me, self.chosen, self.say, self.tell = scenario, arm, me, chosen, say, tell
        self.spans: list[_Span] = []
        self.sightings: list[Sighting] = []

    def run(self) -> int:
        with standing(self.scenario, self.arm, self.me, self.say, self.tell) as lab:
            if lab is None:
                return 0
            self.tell({"devices": confines.check(lab.testbed)})
            try:
                self._all(lab)
            finally:  # an interrupt keeps what was tried
                with contextlib.suppress(*FAILURES):
                    self._collect(lab)
                self._score()
        return 0

    def _all(self, lab: Lab) -> None:
        assert self.scenario.attack is not None
        ground = Ground(lab.testbed, lab.scenario, self.scenario.attack, lab.revoke, lab.agents)
        for index, one in enumerate(self.chosen):
            heed_interrupt()
            if one.name in DROWNING:
                self._collect(lab)
            self.say(f"{self.arm}: {index + 1} of {len(self.chosen)}: {one.title}")
            begin, before = time.monotonic(), len(ground.truths)
            try:
                came = one.act(ground)
            except NotHereError as err:
                came = Came("not tried", str(err))
            except DeniedError as err:
                came = Came("stopped", str(err))
            self.spans.append(_Span(one.name, came, time.monotonic() - begin, ground.truths[before:]))

    def _collect(self, lab: Lab) -> None:
        for point, lines in lab.place.collect().items():
            self.sightings += lab.enforcer.sightings(point, lines)

    def _blocked(self, truth: Truth, alerted: bool) -> bool:
        """Whether something on the way ended it: refused by a port where nobody listens is not blocked."""
        if truth.outcome == "OPEN" or truth.arrived:
            return False
        return truth.outcome != "REFUSED" or alerted or self._listens(truth)

    def _listens(self, truth: Truth) -> bool:
        host = self.scenario.topology.hosts.get(truth.target)
        return host is not None and any(
            service.proto == truth.proto and service.low <= truth.dport <= service.high
            for name in host.runs for service in self.scenario.topology.processes[name].listens)

    def _score(self) -> None:
        """Tell of each technique with what telemetry said of its attempts."""
        truths = [truth for span in self.spans for truth in span.truths]
        matches, _unexplained = match(truths, self.sightings)
        rest = iter(matches)
        for span in self.spans:
            mine = list(itertools.islice(rest, len(span.truths)))
            begin = min((truth.start for truth in span.truths), default=0.0)
            alerts = [[s.time for s in one.sightings if s.verdict in ("deny", "would-deny")] for one in mine]
            first = min((time for times in alerts for time in times), default=None)
            self.tell({"technique": span.name, "tried": {
                "ending": span.came.ending, "detail": span.came.detail, "seconds": round(span.seconds, 3),
                "attempts": len(mine), "seen": sum(bool(one.sightings) for one in mine),
                "blocked": sum(self._blocked(one.truth, bool(times)) for one, times in zip(mine, alerts, strict=True)),
                "alerted": sum(map(bool, alerts)),
                "first_alert_s": None if first is None else max(0.0, first - begin)}})
