"""One short `labctl telemetry` on real packets, and what it leaves in the run's namespaces. Runs isolated."""

from __future__ import annotations

import gzip
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench import registry
from bench.instruments.telemetry.exporters import Export
from bench.store import ResultStore
from bench.telemetry import Plan, measure
from lab.hosts.build import build
from lab.isolation import RunIdentity
from lab.scenario import load

ROOT = Path(__file__).parents[2]
EXPORTS = (Export("netflow-v9", 1, 10), Export("netflow-v9", 1, 10, only="not udp"), Export("ipfix", 1, 10),
           Export("psamp", sampled=50))
DATAGRAMS = "    - {name: store by datagrams, allow: {from: {role: api}, to: {role: db}, service: 6379/udp}}\n"


def run(me: RunIdentity, arm: str) -> dict[str, Any]:
    """What was found, and links, tables and softflowds that are still there."""
    said: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        scenario = load(_scenario(Path(place)))
        with ResultStore(Path(place) / "result") as store:
            found = measure(scenario, registry.load(arm), Plan(EXPORTS, flows=700, traffic_s=1.5, long_s=3.0), build(),
                            me, store, said.append)
        files = sorted(path.name for path in store.directory.iterdir())
        lines = gzip.decompress((store.directory / "truth.jsonl.gz").read_bytes()).splitlines()
        truths = [json.loads(line) for line in lines]
    links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    running = [path.parent.name for path in Path("/proc").glob("[0-9]*/comm") if _reads(path) == "softflowd"]
    return {"found": json.loads(found.model_dump_json()), "files": files, "said": said,
            "over_udp": sum(one["proto"] == "udp" and one["sport"] != 0 for one in truths), "left": {
        "links": [line for line in links.splitlines() if line.startswith(("mirror", "span"))],
        "tables": [line for line in tables.splitlines() if "labctl_mirror" in line], "running": running}}


def _scenario(place: Path) -> Path:
    """three-tier with a rule for datagrams: without one, none passes, and no mirror port could hear any."""
    text = (ROOT / "scenarios" / "three-tier.yaml").read_text()
    head, rules, tail = text.partition("  rules:\n")
    (place / "shop.py").write_text((ROOT / "scenarios" / "shop.py").read_text())
    path = place / "three-tier.yaml"
    path.write_text(head + rules + DATAGRAMS + tail)
    return path


def _reads(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
