"""Pods: containers that share a network. Mininet gives the same answers, where a pod is a host as any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from bench.report.summary import from_json
from tests.e2e import docker_images
from tests.e2e.isolated import ROOT, needs_isolation, needs_root
from tests.e2e.test_docker import everything, labctl

pytestmark = [needs_root, needs_isolation, pytest.mark.e2e]
GOLDEN = yaml.safe_load((ROOT / "tests/golden/pod-gaps.yaml").read_text())
REAL = """\
version: 1
name: side-cars
backend: docker
topology:
  segments: {a: {v4: 10.45.0.0/24, v6: "fd45:0::/64"}, b: {v4: 10.45.1.0/24, v6: "fd45:1::/64"}}
  hosts:
    user: {segment: a, runs: [browser]}
    shop: {segment: b, pod: true, runs: [web, cache, other]}
processes:
  browser: {exe: /opt/browser}
  web: {exe: /opt/shop/web, user: www, listens: [80/tcp]}
  other: {exe: /opt/shop/other, user: ops}
  cache: {exe: /usr/bin/memcached, user: cache, image: labctl-test/memcached, listens: [11211/tcp],
          command: [/usr/bin/memcached, -l, "0.0.0.0,::", -p, "11211", -U, "0"]}
policy:
  default: deny
  rules:
    - {name: web uses cache, allow: {from: {process: web}, to: {process: cache}, service: 11211/tcp}}
    - {name: users, allow: {from: {process: browser}, to: {process: web}, service: 80/tcp}}
arms: [none, agent-nft, agent-ebpf]
"""


@pytest.mark.parametrize("backend", ["docker", pytest.param("mininet", marks=pytest.mark.slow)])
def test_the_gaps_are_those_derived_by_hand_on_either_backend(engine: str, tmp_path: Path, backend: str) -> None:
    before = everything(engine)
    done = labctl("run", "pod", "--backend", backend, "--blocks", "0", "--json", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = {name: arm for name, arm in from_json(done.stdout).arms.items() if not arm.unsupported}
    assert {"agent-nft", "chokepoint"} <= set(found)
    assert {(arm.defects, arm.inconclusive, arm.breaks) for arm in found.values()} == {(0, 0, 0)}
    assert {name: arm.leaks for name, arm in found.items()} == {name: GOLDEN[name]["total"] for name in found}
    for name, arm in found.items():
        wanted = {why: sum(one["flows"] for one in GOLDEN[name]["classes"] if one["why"] == why)
                  for why in {one["why"] for one in GOLDEN[name]["classes"]}}
        assert {why: sum(g.flows for g in arm.gap_classes if why in g.reason) for why in wanted} == wanted, name
    assert everything(engine) == before


def test_each_process_has_a_file_system_of_its_own_and_one_network_with_the_others(engine: str) -> None:
    import docker

    stood = labctl("up", "pod", "--backend", "docker", "--arm", "none", "--json", timeout_s=400)
    assert stood.returncode == 0, stood.stderr
    lab = json.loads(stood.stdout)["id"]
    client = docker.DockerClient(base_url=f"unix://{engine}")
    try:
        def seen(process: str, *words: str) -> str:
            return str(client.containers.get(f"{lab}-shop.{process}").exec_run(list(words)).output.decode())

        assert {process: seen(process, "find", "/opt", "-type", "f").split() for process in ("proxy", "web")} == {
            "proxy": ["/opt/mesh/proxy"], "web": ["/opt/shop/web"]}
        networks = {seen(process, "readlink", "/proc/self/ns/net") for process in ("proxy", "web", "metrics")}
        assert len(networks) == 1 and networks != {""}
        granted = {process: client.containers.get(f"{lab}-shop.{process}").attrs["HostConfig"]["CapAdd"]
                   for process in ("proxy", "web")}
        assert not any({"NET_ADMIN", "SYS_ADMIN", "BPF"} & set(one) for one in granted.values()), granted
        done = labctl("probe", "shop/metrics", "shop", "8080/tcp", "--lab", lab, "--expect", "allow", timeout_s=300)
        assert done.returncode == 0, done.stderr
    finally:
        client.close()
        assert labctl("down", lab, timeout_s=300).returncode == 0


def test_a_real_program_beside_built_in_ones_is_told_from_them(engine: str, tmp_path: Path) -> None:
    import docker

    client = docker.DockerClient(base_url=f"unix://{engine}")
    docker_images.make(client, tmp_path)
    client.close()
    file = tmp_path / "side-cars.yaml"
    file.write_text(REAL)
    done = labctl("run", str(file), "--blocks", "0", "--json", "--results", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    found = {name: arm for name, arm in from_json(done.stdout).arms.items() if not arm.unsupported}
    assert {(arm.defects, arm.inconclusive, arm.breaks) for arm in found.values()} == {(0, 0, 0)}
    assert found["none"].leaks == found["none"].denied
    if "agent-ebpf" in found:  # only who sees processes keeps the third container from the cache
        assert 0 == found["agent-ebpf"].leaks < found["agent-nft"].leaks
