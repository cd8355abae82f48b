"""Compute positions for a cell's drawing, in inches, without drawing.

Nodes form a row, one column each, left to right; the inputs share column 0, the output takes the last one. An
edge that cannot run straight along the row takes a lane, a horizontal track above (+1, +2, ...) or below (-1, -2, ...)
the row, and turns up or down only over the node that it leaves or feeds. Names are placed in the gaps between columns, so
no line of another edge crosses a name, and two names could meet only in one lane, which overlapping edges never share.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import chain, count

from fastdarts.report.style import printable
from fastdarts.spaces import Wiring

Point = tuple[float, float]

FONT = 10.0  # points, of the operations' names
_CHARACTER = 0.602 * FONT / 72  # a monospaced character
_LANE, _FIRST_LANE = 0.42, 0.62  # distance of two lanes; of the first one from the row
_HALF = 0.25  # half a node's height
_INPUT, _OUTPUT, _LAST_GAP = 0.86, 0.6, 0.7


@dataclass(frozen=True)
class Box:
    """A named rectangle around the centre (x, y)."""

    name: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class DrawnEdge:
    """One gene: its polyline from state to node, and the centre of its name."""

    op: str
    points: tuple[Point, ...]
    label: Point


@dataclass(frozen=True)
class Layout:
    """A cell's boxes (inputs, nodes, output), its edges in the genes' order, and the lines of the concatenation."""

    boxes: tuple[Box, ...]
    edges: tuple[DrawnEdge, ...]
    concat: tuple[tuple[Point, ...], ...]
    bus: float  # height of the concatenation's line
    top: float
    bottom: float


def lanes(wiring: Wiring) -> list[int]:
    """Return the lane of each gene, 0 for straight along the row; short edges take the near lanes."""
    genes, inputs = wiring.genes, len(wiring.inputs)
    spans = [(max(0, state - inputs + 1), 1 + node) for _, state, node in genes]  # columns, from and to
    taken: dict[int, list[tuple[int, int]]] = defaultdict(list)
    chosen = [0] * len(genes)
    for gene in sorted(range(len(genes)), key=lambda g: spans[g][1] - spans[g][0]):
        (first, last), state = spans[gene], genes[gene][1]
        sides = {0: (1,), 1: (-1,)}.get(state, (1, -1)) if inputs == 2 else (1, -1)
        straight = [0] if (state >= inputs or inputs == 1) and last == first + 1 else []
        for lane in chain(straight, (side * far for far in count(1) for side in sides)):
            if all(last <= a or b <= first for a, b in taken[lane]):
                break
        taken[lane].append((first, last))
        chosen[gene] = lane
    return chosen


def place(wiring: Wiring) -> Layout:
    """Lay out a cell of one or two inputs."""
    genes, concat, inputs = wiring.genes, set(wiring.concat), len(wiring.inputs)
    lane = lanes(wiring)
    nodes = len(wiring.nodes)
    heights = [_height(n) for n in lane]
    ports = _ports(wiring, lane)
    width = max(0.6, 0.28 * (1 + max((len(group) for group in ports.values()), default=0)))
    gap = _CHARACTER * max(len(printable(op)) for op, _, _ in genes) + 0.54
    column = [0.0, *((_INPUT + width) / 2 + gap + (width + gap) * i for i in range(nodes))]

    def port(gene: int, state: int, leaves: bool) -> float:
        group = ports[state, lane[gene] > 0, leaves]
        half = (group.index(gene) + 1) * width / 2 / (len(group) + 1)
        return column[state - inputs + 1] + (half if leaves else half - width / 2)

    edges = []
    for gene, (op, state, node) in enumerate(genes):
        y, into = heights[gene], inputs + node
        touch = _HALF if y > 0 else -_HALF
        if lane[gene] == 0:
            leaves = _INPUT / 2 if state < inputs else column[state - inputs + 1] + width / 2
            path = [(leaves, 0.0), (column[node + 1] - width / 2, 0.0)]
        else:
            path = [(port(gene, into, False), y), (port(gene, into, False), touch)]
            if state < inputs:
                path = [(_INPUT / 2, y), *path]
            else:
                path = [(port(gene, state, True), touch), (port(gene, state, True), y), *path]
        edges.append(DrawnEdge(printable(op), tuple(path), (column[node + 1] - (width + gap) / 2, y)))

    boxes = [_input_box(state, wiring, heights) for state in range(inputs)]
    boxes += [Box(name, column[1 + i], 0.0, width, 2 * _HALF) for i, name in enumerate(wiring.nodes)]
    bus = _height(min(0, *lane, -1) - 1)
    last = inputs + nodes - 1
    straight, dropped = last in concat, sorted(concat - {last})
    rows = ([0.0] if straight else []) + ([bus] if dropped else [])
    output = Box("c_{k}", column[-1] + (width + _OUTPUT) / 2 + _LAST_GAP, 0.0, _OUTPUT, 2 * _HALF)
    output = Box(output.name, output.x, sum(rows) / len(rows), _OUTPUT, max(rows) - min(rows) + 2 * _HALF)
    lines: list[tuple[tuple[float, float], ...]] = (
        [((column[-1] + width / 2, 0.0), (output.x - _OUTPUT / 2, 0.0))] if straight else []
    )
    for state in dropped:
        end = (output.x - _OUTPUT / 2, bus)
        if state < inputs:
            left, y = -_INPUT / 2, boxes[state].y
            lines.append(((left, y), (left - 0.2, y), (left - 0.2, bus), end))
        else:
            x = column[state - inputs + 1]
            lines.append(((x, -_HALF), (x, bus), end))
    top = max(box.y + box.height / 2 for box in boxes)
    return Layout((*boxes, output), tuple(edges), tuple(lines), bus, max(top, *heights), min(bus, *heights))


def _height(lane: int) -> float:
    return 0.0 if lane == 0 else (abs(lane) - 1) * _LANE * _sign(lane) + _FIRST_LANE * _sign(lane)


def _sign(lane: int) -> int:
    return 1 if lane > 0 else -1


def _ports(wiring: Wiring, lane: list[int]) -> dict[tuple[int, bool, bool], list[int]]:
    """Return (state, above?, leaving?) -> genes from left to right, ordered so that edges of one node do not cross."""
    ports: dict[tuple[int, bool, bool], list[int]] = defaultdict(list)
    genes, inputs = wiring.genes, len(wiring.inputs)
    for gene in sorted(range(len(genes)), key=lambda g: abs(lane[g])):
        if lane[gene]:
            ports[inputs + genes[gene][2], lane[gene] > 0, False].append(gene)
        if lane[gene] and genes[gene][1] >= inputs:  # the inputs' edges leave them sideways
            ports[genes[gene][1], lane[gene] > 0, True].insert(0, gene)
    return ports


def _input_box(state: int, wiring: Wiring, heights: list[float]) -> Box:
    """Return the input's box, as tall as the lanes that leave it."""
    used = [y for y, (_, source, _) in zip(heights, wiring.genes, strict=True) if source == state]
    used = used or [_FIRST_LANE if state == 0 else -_FIRST_LANE]
    return Box(wiring.inputs[state], 0.0, (max(used) + min(used)) / 2, _INPUT, max(used) - min(used) + 0.4)
