"""A scenario as a picture: segments as boxes, hosts in groups, and who may ask whom for what. SVG, always the same."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.report.groups import Edge, Group, by_labels, by_policy, edges, merged
from bench.report.words import numbered, services_text, some
from lab.model import Scenario

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FINE = 20  # groups that are told apart by all they have; more are put together by labels
MOST_EDGES = 24  # arrows between groups; more are shown as a table of who may ask whom
MOST_CHIPS = 4  # hosts of a group that are named
COLOURS = ("#1b6ca8", "#2e8540", "#8a4fa3", "#b35c00", "#0f7c7c", "#a3335d", "#5a6b00", "#4a4a8a")
INK, DIM, PAPER, SEGMENT, NODE, FRAME = "#1c2733", "#66727f", "#ffffff", "#f3f6f9", "#ffffff", "#c3ccd6"
MARKS = {"foothold": ("#c62828", "#fdeaea"), "crown jewel": ("#a67c00", "#fff6d6")}
SIZE = 8.0  # points of the text in a group
# all in points, y downwards
WIDE, GAP_X, GAP_Y, PAD, TOP, LINE = 176.0, 122.0, 22.0, 14.0, 62.0, 12.5


@dataclass(frozen=True, slots=True)
class Box:
    """Where something is drawn."""

    x: float
    y: float
    w: float
    h: float


def svg(scenario: Scenario) -> str:
    """The picture as an SVG document; its texts are texts. The same scenario gives the same document."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.hashsalt": "labctl", "svg.fonttype": "none", "font.family": "DejaVu Sans"}):
        figure(scenario).savefig(out, format="svg", metadata={"Date": None, "Creator": "labctl"})
    return out.getvalue()


def figure(scenario: Scenario) -> Figure:
    """The picture as a matplotlib figure."""
    from matplotlib.figure import Figure

    fine = by_policy(scenario)
    shown, arrows = fine, edges(scenario, fine)
    if len(fine) > FINE:
        shown = by_labels(scenario)
        arrows = merged(arrows, fine, shown)
    columns = _columns(scenario, shown, arrows)
    boxes, areas, (width, height) = _places(columns, shown, 18 if len(arrows) > MOST_EDGES else GAP_X)
    together = len(arrows) > MOST_EDGES
    legend = _legend_rows(scenario, arrows, together)
    table = _table_size(shown) if together else Box(0, 0, 0, 0)
    left, wide = width + PAD, width + table.w
    bottom = max(height, TOP + table.h)
    tall = bottom + 26 + LINE * len(legend) + PAD
    made = Figure(figsize=(wide / 72, tall / 72), facecolor=PAPER)
    axes = made.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, wide)
    axes.set_ylim(tall, 0)
    axes.axis("off")
    _title(axes, scenario, together)
    for name, area in areas.items():
        _segment(axes, scenario, name, area)
    for group, box in zip(shown, boxes, strict=True):
        _group(axes, group, box)
    if together:
        _table(axes, arrows, shown, left, TOP)
    else:
        colours = _rule_colours(arrows)
        for index, edge in enumerate(arrows):
            _arrow(axes, boxes[edge.source], boxes[edge.target], colours[edge.rules[0]], some(edge.services, 2), index)
    for number, (colour, text) in enumerate(legend):
        _text(axes, PAD + 22, bottom + 26 + LINE * number, text, colour=INK, size=7.5)
        axes.plot([PAD, PAD + 16], [bottom + 26 + LINE * number] * 2, color=colour, linewidth=2.2)
    return made


# --- where ------------------------------------------------------------------------------------


def _columns(scenario: Scenario, shown: Sequence[Group], arrows: Sequence[Edge]) -> list[list[str]]:
    """The segments in columns, so that most arrows point to the right: layers of the graph of who asks whom."""
    import networkx as nx

    graph: Any = nx.DiGraph()
    graph.add_nodes_from(scenario.topology.segments)
    graph.add_edges_from((shown[e.source].segment, shown[e.target].segment) for e in arrows
                         if shown[e.source].segment != shown[e.target].segment)
    condensed = nx.condensation(graph)
    order = list(scenario.topology.segments)
    columns: list[list[str]] = []
    if len(arrows) > MOST_EDGES:  # no arrow is drawn
        return [order[start:start + 2] for start in range(0, len(order), 2)]
    for layer in nx.topological_generations(condensed):
        names = sorted((name for node in layer for name in condensed.nodes[node]["members"]), key=order.index)
        # segments that ask each other have no order; side by side they would make a picture that nobody can read
        columns += [names[start:start + 2] for start in range(0, len(names), 2)]
    return columns


def _places(columns: list[list[str]], shown: Sequence[Group], gap: float) -> tuple[
        list[Box], dict[str, Box], tuple[float, float]]:
    """The boxes of the groups, the areas of the segments, and the size of it all."""
    boxes: dict[int, Box] = {}
    areas: dict[str, Box] = {}
    bottom = 0.0
    for column, names in enumerate(columns):
        x, y = PAD + column * (WIDE + 2 * PAD + gap), TOP
        for name in names:
            here = [i for i, group in enumerate(shown) if group.segment == name]
            inner = y + 34
            for i in here:
                boxes[i] = Box(x + PAD, inner, WIDE, _height(shown[i]))
                inner += _height(shown[i]) + GAP_Y
            areas[name] = Box(x, y, WIDE + 2 * PAD, max(inner - GAP_Y + PAD - y, 48))
            y = areas[name].y + areas[name].h + 30
        bottom = max(bottom, y - 30)
    # the shorter columns stand in the middle, beside what they talk to
    for names in columns:
        shift = (bottom - max(areas[n].y + areas[n].h for n in names)) / 2
        for name in names:
            areas[name] = Box(areas[name].x, areas[name].y + shift, areas[name].w, areas[name].h)
            boxes |= {i: Box(b.x, b.y + shift, b.w, b.h) for i, b in boxes.items() if shown[i].segment == name}
    width = PAD * 2 + len(columns) * (WIDE + 2 * PAD) + (len(columns) - 1) * gap
    return [boxes[i] for i in range(len(shown))], areas, (max(width, 520.0), bottom)


def _height(group: Group) -> float:
    return 24 + LINE * len(_lines(group)) + 21 * len(_chip_rows(group))


def _lines(group: Group) -> list[str]:
    labels = [f"{key}: {value}" for key, value in group.labels.items()]
    lines = [labels[start:start + 2] for start in range(0, len(labels), 2)]
    return [", ".join(line) for line in lines]


def _chip_rows(group: Group) -> list[list[str]]:
    """Names of hosts, two in a row, those that are marked first."""
    names = [host.name for host in group.hosts]
    if len(names) == 1:  # its name stands above; what is left to say is what it is to the attacker
        return [[mark] for mark in group.marks.values()]
    first = [name for name in names if name in group.marks] + [name for name in names if name not in group.marks]
    shown = first if len(first) <= MOST_CHIPS else [*first[:MOST_CHIPS - 1], f"+ {len(first) - MOST_CHIPS + 1} more"]
    return [shown[start:start + 2] for start in range(0, len(shown), 2)]


# --- drawing ----------------------------------------------------------------------------------


def _text(axes: Axes, x: float, y: float, text: str, *, colour: str = INK, size: float = SIZE, bold: bool = False,
          ha: str = "left", box: dict[str, Any] | None = None, most: int = 200) -> None:
    cut = text if len(text) <= most else f"{text[:most - 1]}…"
    axes.text(x, y, cut, color=colour, fontsize=size, weight="bold" if bold else "normal",
              ha=ha, va="center", bbox=box, zorder=6, parse_math=False)  # dollar signs in a name are no formula


def _rounded(axes: Axes, at: Box, fill: str, edge: str, radius: float, order: float, wide: float = 1.0) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(FancyBboxPatch((at.x, at.y), at.w, at.h, boxstyle=f"round,pad=0,rounding_size={radius}",
                                  facecolor=fill, edgecolor=edge, linewidth=wide, zorder=order))


def _title(axes: Axes, scenario: Scenario, together: bool) -> None:
    topology, policy = scenario.topology, scenario.policy
    _text(axes, PAD, 18, scenario.name, size=14, bold=True)
    size = ", ".join((numbered(len(topology.segments), "segment"), numbered(len(topology.hosts), "host"),
                      numbered(len(policy.rules), "rule")))
    between = "the table says who may ask whom" if together else "arrows are what is allowed"
    _text(axes, PAD, 38, f"{size}; {policy.default} by default; {between}", colour=DIM, size=8.5)


def _segment(axes: Axes, scenario: Scenario, name: str, area: Box) -> None:
    segment = scenario.topology.segments[name]
    _rounded(axes, area, SEGMENT, FRAME, 9, 1)
    _text(axes, area.x + PAD, area.y + 14, name, size=9.5, bold=True, most=20)
    _text(axes, area.x + area.w - PAD, area.y + 14, segment.v4, colour=DIM, size=7, ha="right")


def _group(axes: Axes, group: Group, at: Box) -> None:
    reachable = any(not host.takes_agent for host in group.hosts)
    _rounded(axes, at, NODE, FRAME, 6, 4)
    count = f" ×{len(group.hosts)}" if len(group.hosts) > 1 else ""
    _text(axes, at.x + 9, at.y + 13, f"{group.name}{count}", bold=True, size=9, most=24)
    if reachable:
        what = "external" if all(host.external for host in group.hosts) else "no agent"
        _text(axes, at.x + at.w - 9, at.y + 13, what, colour="#b35c00", size=7, ha="right")
    y = at.y + 24
    for line in _lines(group):
        _text(axes, at.x + 9, y + 3, line, colour=DIM, size=7, most=36)
        y += LINE
    for row in _chip_rows(group):
        for number, name in enumerate(row):
            mark = group.marks.get(name) or (name if name in MARKS else None)
            edge, fill = MARKS[mark] if mark else (FRAME, "#f7f9fb")
            chip = Box(at.x + 8 + number * 82, y, 78, 17)
            _rounded(axes, chip, fill, edge, 5, 5, 1.4 if mark else 0.8)
            _text(axes, chip.x + chip.w / 2, chip.y + chip.h / 2 + 0.5, name, size=7.2, ha="center", most=14,
                  colour=edge if mark else INK, bold=bool(mark))
        y += 21


def _arrow(axes: Axes, a: Box, b: Box, colour: str, label: str, index: int, wide: float = 1.5) -> None:
    from matplotlib.patches import FancyArrowPatch

    if a == b:
        start, end, bend = (a.x + a.w, a.y + a.h * 0.35), (a.x + a.w, a.y + a.h * 0.75), -1.4
    elif a.x + a.w <= b.x:
        start, end, bend = (a.x + a.w, a.y + a.h / 2), (b.x, b.y + b.h / 2), 0.0
    elif b.x + b.w <= a.x:
        start, end, bend = (a.x, a.y + a.h * 0.75), (b.x + b.w, b.y + b.h * 0.75), -0.18
    else:
        start, end, bend = (a.x + a.w, a.y + a.h / 2), (b.x + b.w, b.y + b.h / 2), -0.5
    axes.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>",
                                   mutation_scale=11, color=colour, linewidth=wide, shrinkA=1, shrinkB=2, zorder=5))
    # labels of arrows that leave one box are kept apart along the way
    along = 0.5 + (index % 3 - 1) * 0.12 if start[1] != end[1] else 0.5
    x, y = start[0] + (end[0] - start[0]) * along, start[1] + (end[1] - start[1]) * along
    if start[0] == end[0]:  # the bow of an arrow that comes back to its side
        x += abs((end[1] - start[1]) * bend) / 2
    _text(axes, x, y, label, colour=colour, size=7.6, bold=True, ha="center",
          box={"facecolor": PAPER, "edgecolor": "none", "pad": 1.6})


CELL, NAMES = 15.0, 150.0  # of the table; room for the names of rows and columns


def _table_size(shown: Sequence[Group]) -> Box:
    return Box(0, 0, NAMES + CELL * len(shown) + 2 * PAD, NAMES + CELL * len(shown) + PAD)


def _table(axes: Axes, arrows: Sequence[Edge], shown: Sequence[Group], x: float, y: float) -> None:
    """Who (rows) may ask whom (columns): the darker a cell, the more services. Lines part the segments."""
    from matplotlib.patches import Rectangle

    left, top, side = x + NAMES, y + NAMES, CELL * len(shown)
    most = max(len(edge.services) for edge in arrows)
    for edge in arrows:
        shade = 0.18 + 0.82 * (len(edge.services) / most) ** 0.5
        axes.add_patch(Rectangle((left + edge.target * CELL, top + edge.source * CELL), CELL, CELL,
                                 facecolor=COLOURS[0], alpha=shade, edgecolor=PAPER, linewidth=0.6, zorder=3))
    for number, group in enumerate(shown):
        colour = next((MARKS[mark][0] for mark in group.marks.values()), INK)
        label = f"{group.segment}: {group.name}" + (f" ×{len(group.hosts)}" if len(group.hosts) > 1 else "")
        middle = (number + 0.5) * CELL
        _text(axes, left - 6, top + middle, label, colour=colour, size=7.4, ha="right", most=34, bold=bool(group.marks))
        axes.text(left + middle, top - 6, label[:34], color=colour, fontsize=7.4, rotation=90, ha="center", va="bottom",
                  weight="bold" if group.marks else "normal", parse_math=False)
        if number == 0 or shown[number - 1].segment != group.segment:
            axes.plot([left - NAMES + 20, left + side], [top + number * CELL] * 2, color=FRAME, linewidth=0.8)
            axes.plot([left + number * CELL] * 2, [top - NAMES + 20, top + side], color=FRAME, linewidth=0.8)
    _text(axes, left - 6, top - 12, "asks ↓   asked →", colour=DIM, size=7.5, ha="right")


def _rule_colours(arrows: Sequence[Edge]) -> dict[str, str]:
    names = list(dict.fromkeys(rule for edge in arrows for rule in edge.rules))
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}


def _legend_rows(scenario: Scenario, arrows: Sequence[Edge], together: bool) -> list[tuple[str, str]]:
    """What the colours mean: a rule each, or the segment that asks; then the marks."""
    rows: list[tuple[str, str]] = []
    if together:
        most = max(len(edge.services) for edge in arrows)
        rows.append((COLOURS[0], "a cell: hosts of the row may ask hosts of the column; the darker, for the more "
                                 f"services (at most {most})"))
    else:
        said = {rule.name: rule for rule in scenario.policy.rules}
        for name, colour in _rule_colours(arrows).items():
            rule = said.get(name)
            rows.append((colour, f"{name}: {services_text(rule.services)}" if rule else "allowed by default"))
    if scenario.attack is not None:
        rows.append((MARKS["foothold"][0], f"foothold: {scenario.attack.foothold_host}, in "
                                           f"{scenario.attack.foothold_process}"))
        rows.append((MARKS["crown jewel"][0], f"crown jewels: {some(scenario.attack.goals, 6)}"))
    return rows
