"""Small random topologies, policies and flows (hypothesis), chosen so that rules and flows often meet."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from lab.model import STRANGER, Flow, Host, Policy, Process, Rule, Segment, Selector, Service, Topology

ROLES, ENVS, USERS = ("web", "db", "cam"), ("prod", "test"), ("alice", "bob", "nobody", "carol")
PATHS = ("/opt/a", "/opt/b", "/srv/c")
HASHES = (None, "0" * 64, "1" * 64)
PORTS = (1, 79, 80, 81, 8080, 61000, 65535)
CIDRS = ("10.1.0.0/16", "10.2.0.0/24", "10.2.0.3/32", "fd10:1::/64", "fd10:2::2/128", "0.0.0.0/0", "::/0")


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    names = [f"p{i}" for i in range(draw(st.integers(1, 4)))]
    processes = {
        name: Process(
            name, draw(st.sampled_from(PATHS)), draw(st.sampled_from(USERS[:3])), 20000,
            draw(st.sampled_from([(), (Service("tcp", 80, 80),), (Service("udp", 79, 81), Service("tcp", 1, 1))])),
            sha256=draw(st.sampled_from(HASHES)),
        )
        for name in names
    }  # fmt: skip
    hosts = {}
    for number in range(draw(st.integers(1, 4))):
        segment = draw(st.sampled_from(("s1", "s2")))
        labels = {"role": draw(st.sampled_from(ROLES)), "env": draw(st.sampled_from(ENVS))}
        for absent in draw(st.sets(st.sampled_from(("role", "env")))):
            del labels[absent]
        runs = tuple(draw(st.sets(st.sampled_from(names))))
        v4, v6 = f"10.{segment[1]}.0.{number + 2}", f"fd10:{segment[1]}::{number + 2}"
        hosts[f"h{number}"] = Host(f"h{number}", segment, v4, v6, f"02:00:00:00:00:{number:02x}", labels, runs)
    segments = {
        s: Segment(s, f"10.{s[1]}.0.0/16", f"fd10:{s[1]}::/64", f"10.{s[1]}.0.1", f"fd10:{s[1]}::1")
        for s in ("s1", "s2")
    }
    return Topology(segments, hosts, processes, {"alice": 20000, "bob": 20001, "nobody": 65534})


def selectors(topology: Topology) -> st.SearchStrategy[Selector]:
    def some(*values: str) -> st.SearchStrategy[tuple[str, ...]]:
        return st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True).map(tuple)

    keys = {
        "role": some(*ROLES), "env": some(*ENVS), "host": some(*topology.hosts), "segment": some("s1", "s2"),
        "cidr": some(*CIDRS), "process": some(*topology.processes), "user": some(*USERS),
    }  # fmt: skip
    chosen = st.sets(st.sampled_from(sorted(keys)), max_size=2)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({name: keys[name] for name in sorted(names)})).map(
        Selector
    )


@st.composite
def services(draw: st.DrawFn) -> Service:
    family = draw(st.sampled_from((None, None, 4, 6)))
    proto = draw(st.sampled_from(("tcp", "udp", "icmp", "any")))
    if proto in ("icmp", "any"):
        return Service(proto, family=family)
    low, high = sorted((draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS))))
    return Service(proto, low, high, family)


@st.composite
def policies(draw: st.DrawFn, topology: Topology, max_rules: int = 8) -> Policy:
    rules = []
    for number in range(draw(st.integers(0, max_rules))):
        verdict = draw(st.sampled_from(("allow", "allow", "deny")))
        ends = draw(selectors(topology)), draw(selectors(topology))
        wanted = tuple(draw(st.lists(services(), min_size=1, max_size=2)))
        rules.append(Rule(f"rule-{number}", verdict, *ends, wanted))
    return Policy(draw(st.sampled_from(("allow", "deny"))), tuple(rules))


def a_flow(rng: random.Random, topology: Topology) -> Flow:
    hosts, processes = list(topology.hosts), [*topology.processes, STRANGER]
    proto = rng.choice(("tcp", "udp", "icmp"))
    owner, port = ("", 0) if proto == "icmp" else (rng.choice(processes), rng.choice(PORTS))
    source, process, user = rng.choice(hosts), rng.choice(processes), rng.choice((*USERS, "mallory"))
    return Flow(source, process, user, rng.choice(hosts), owner, proto, port, rng.choice((4, 6)))


@st.composite
def worlds(draw: st.DrawFn, flow_count: int = 50) -> tuple[Topology, Policy, list[Flow]]:
    """Flows by a seed, not drawn one by one: that is a hundred times faster, and they need no shrinking."""
    topology = draw(topologies())
    rng = random.Random(draw(st.integers(0, 2**32)))
    return topology, draw(policies(topology)), [a_flow(rng, topology) for _ in range(flow_count)]
