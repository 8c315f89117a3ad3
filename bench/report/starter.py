"""A scenario to start from: small, right as it stands, every part explained where it is written."""

from __future__ import annotations

SCENARIO = '''\
{modeline}# {name}: a starter. Say here, in a sentence, the question that this scenario asks; `labctl list` shows it.
#
# Change it step by step:   labctl validate {file}     every mistake at once, with what to write instead
#                           labctl show {file}         what it means, as a tree; --graph draws it
#                           labctl run {file} --quick  the comparison, in about a minute
# Every field is explained in docs/scenario.md.{hint}
version: 1
name: {name}

# --- topology: who is where -------------------------------------------------------------------
topology:
  # Segments are layer-2 networks that meet at one router. Prefixes may be left out: {{}} takes one that is free.
  # What talks inside one segment crosses no router, so an enforcer in the network may not see it.
  segments:
    office: {{v4: 10.20.0.0/24, v6: "fd20:0::/64"}}
    servers: {{v4: 10.20.1.0/24, v6: "fd20:1::/64"}}
  hosts:
    # count: 2 makes client-1 and client-2. Labels are what the policy selects by; call them what you like.
    client: {{segment: office, count: 2, labels: {{role: client}}, runs: [browser]}}
    web:    {{segment: servers, labels: {{app: shop, role: web}}, runs: [frontend]}}
    db:     {{segment: servers, labels: {{app: shop, role: db, value: crown-jewel}}, runs: [store]}}
    # A host that can take no agent (a printer, a camera, an appliance):
    printer: {{segment: office, labels: {{role: printer}}, agent: impossible, runs: [spooler]}}

# --- processes: what runs there ---------------------------------------------------------------
# A process is known by the path of its executable, under /opt or /srv. labctl places a built-in service there, which
# listens, answers, and asks the processes under `calls` in turn. `vulnerable: true`: who reaches it can take its host.
processes:
  browser:  {{exe: /opt/client/browser}}
  frontend: {{exe: /opt/shop/frontend, user: www, listens: [80/tcp], calls: [store], vulnerable: true}}
  store:    {{exe: /opt/shop/store, user: store, listens: [5432/tcp], vulnerable: true}}
  spooler:  {{exe: /opt/printer/spooler, listens: [631/tcp], vulnerable: true}}

# --- policy: what every arm has to enforce ----------------------------------------------------
# A deny overrides an allow, an allow overrides the default; the order of rules never matters.
# from and to: labels, host, segment, cidr, process or user; keys are ANDed, a list of values is ORed; {{any: true}}.
# service: 80/tcp, 8000-8100/tcp, 53/udp, a list of them, icmp, any, or a process that listens.
policy:
  default: deny
  rules:
    - {{name: clients to shop, allow: {{from: {{role: client}}, to: {{role: web}}, service: 80/tcp}}}}
    # Only the frontend may ask the database, and nothing else on its host. Not every enforcer can say so: a gap.
    - {{name: shop reads store, allow: {{from: {{role: web, process: frontend}}, to: {{role: db}}, service: store}}}}

# --- traffic: honest load, for the latency that an application sees ---------------------------
# Leave it out and the costs of connections and throughput are measured all the same. With it, the process runs the
# locustfile (https://locust.io) on each client; it has to lie beside this file, as scenarios/shop.py does in labctl.
{traffic}

# --- attack: how far does an intruder get? ----------------------------------------------------
# The attacker starts inside a process, with its address and user, and goes on from every host it takes.
attack: {{foothold: {{host: web, process: frontend}}, goal: {{value: crown-jewel}}}}

# --- arms: what is compared -------------------------------------------------------------------
# none is the baseline that every other is measured against. Installed here: {arms}.
arms: [{chosen}]

# seed: 1  # decides everything random; the same seed gives the same run, but for the machine's noise
'''

TRAFFIC = "traffic: {{clients: {{role: client}}, process: browser, locustfile: {locustfile}, rate: 100/s}}"
MODELINE = "# yaml-language-server: $schema={schema}\n"
HINT = """
# For an editor that knows YAML schemas: labctl schema scenario > scenario.schema.json, and as the first line here:
#   yaml-language-server: $schema=scenario.schema.json"""
MOST_ARMS = 3  # with the baseline: a first run should not take long


def starter(name: str, file: str, arms: tuple[str, ...], *, locustfile: str | None, schema: str | None) -> str:
    """The text of a scenario called `name`, to be kept as `file`.

    `arms`: what is installed; the first few are compared. `locustfile`: one that lies beside the file; without, the
    traffic stays a comment. `schema`: where the published JSON Schema is, as seen from the file; None: nowhere.
    """
    plain = TRAFFIC.format(locustfile=locustfile or "shop.py")
    others = [arm for arm in arms if arm != "none" and not arm.endswith("-monitor")]
    return SCENARIO.format(
        name=name, file=file, arms=", ".join(arms), chosen=", ".join(["none", *others[:MOST_ARMS - 1]]),
        traffic=plain if locustfile else f"# {plain}",
        modeline=MODELINE.format(schema=schema) if schema else "", hint="" if schema else HINT)
