"""The self-test as it goes, a line a plant, or as JSON at its end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from bench.selftest.findings import Finding

_STYLES = {"PASS": "green", "FAIL": "bold red", "NOISY": "yellow", "UNSUPPORTED": "cyan"}


def told(run: Callable[[Callable[[Finding], None], Callable[[str], None]], int], *, as_json: bool) -> int:
    """Call `run` with what tells a finding and what tells progress; print the rest when it has ended. Its status."""
    findings: list[Finding] = []
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    progress = Console(stderr=True, highlight=False)

    def tell(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            for line in lines(finding):
                console.print(line)

    if progress.is_terminal:
        with progress.status("labctl: selftest") as status:
            result = run(tell, lambda text: status.update(f"labctl: {text}"))
    else:
        result = run(tell, lambda text: print(f"labctl: {text}", file=sys.stderr, flush=True))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    elif findings:
        console.print(closing(findings))
    return result


def lines(finding: Finding) -> list[Text]:
    """One finding: outcome, name and time; what was planted and what came out."""
    head = Text.assemble((f"{finding.outcome:<11}", _STYLES[finding.outcome]), f" {finding.name:<15}",
                         f"{finding.seconds:5.1f} s   detector: {finding.detector}")
    if finding.planted:
        return [head, Text(f"{'':12}planted:  {finding.planted}"), Text(f"{'':12}came out: {finding.found}")]
    return [head, Text(f"{'':12}{finding.found}")]


def closing(findings: Sequence[Finding]) -> Text:
    """The count of each outcome, in words."""
    counts = {outcome: sum(f.outcome == outcome for f in findings) for outcome in _STYLES}
    words = {"PASS": "came out as planted", "FAIL": "did not", "NOISY": "too noisy to tell",
             "UNSUPPORTED": "could not be planted here"}
    said = ", ".join(f"{n} {words[outcome]}" for outcome, n in counts.items() if n)
    return Text(f"{len(findings)} plants: {said}; {sum(f.seconds for f in findings):.0f} s")
