"""Where the parts of a cell's drawing stand, in inches. Nothing is drawn here.

Nodes stand in a row, one column each, left to right; both inputs share column 0, the output takes the last one. An
edge that cannot go straight along the row runs in a lane, a horizontal track above (+1, +2, ...) or below (-1, -2, ...)
the row, and turns up or down only over the node that it leaves or feeds. Names stand in the gaps between columns, so
no line of another edge crosses a name, and two names could meet only in one lane, which overlapping edges never share.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import chain, count

from fastdarts.genotype import Gene, Genotype
from fastdarts.report.style import printable

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
class Edge:
    """One gene: its polyline from state to node, and the centre of its name."""

    op: str
    points: tuple[Point, ...]
    label: Point


@dataclass(frozen=True)
class Layout:
    """A cell's boxes (inputs, nodes, output), its edges in the genes' order, and the lines of the concatenation."""

    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    concat: tuple[tuple[Point, ...], ...]
    bus: float  # height of the concatenation's line
    top: float
    bottom: float


def lanes(genes: tuple[Gene, ...]) -> list[int]:
    """The lane of each gene, 0 for straight along the row; short edges take the near lanes."""
    spans = [(max(0, state - 1), 1 + gene // 2) for gene, (_, state) in enumerate(genes)]  # columns, from and to
    taken: dict[int, list[tuple[int, int]]] = defaultdict(list)
    chosen = [0] * len(genes)
    for gene in sorted(range(len(genes)), key=lambda g: spans[g][1] - spans[g][0]):
        (first, last), state = spans[gene], genes[gene][1]
        sides = {0: (1,), 1: (-1,)}.get(state, (1, -1))
        straight = [0] if state >= 2 and last == first + 1 else []
        for lane in chain(straight, (side * far for far in count(1) for side in sides)):
            if all(last <= a or b <= first for a, b in taken[lane]):
                break
        taken[lane].append((first, last))
        chosen[gene] = lane
    return chosen


def place(genotype: Genotype, kind: str) -> Layout:
    """Lay out the `normal` or `reduce` cell of a valid genotype."""
    genes, concat = getattr(genotype, kind), set(getattr(genotype, f"{kind}_concat"))
    lane = lanes(genes)
    nodes = len(genes) // 2
    heights = [_height(n) for n in lane]
    ports = _ports(genes, lane)
    width = max(0.6, 0.28 * (1 + max((len(group) for group in ports.values()), default=0)))
    gap = _CHARACTER * max(len(printable(op)) for op, _ in genes) + 0.54
    column = [0.0, *((_INPUT + width) / 2 + gap + (width + gap) * i for i in range(nodes))]

    def port(gene: int, state: int, leaves: bool) -> float:
        group = ports[state, lane[gene] > 0, leaves]
        half = (group.index(gene) + 1) * width / 2 / (len(group) + 1)
        return column[state - 1] + (half if leaves else half - width / 2)

    edges = []
    for gene, (op, state) in enumerate(genes):
        node, y = 2 + gene // 2, heights[gene]
        touch = _HALF if y > 0 else -_HALF
        if lane[gene] == 0:
            path = [(column[state - 1] + width / 2, 0.0), (column[node - 1] - width / 2, 0.0)]
        else:
            path = [(port(gene, node, False), y), (port(gene, node, False), touch)]
            if state < 2:
                path = [(_INPUT / 2, y), *path]
            else:
                path = [(port(gene, state, True), touch), (port(gene, state, True), y), *path]
        edges.append(Edge(printable(op), tuple(path), (column[node - 1] - (width + gap) / 2, y)))

    boxes = [_input_box(state, genes, heights) for state in (0, 1)]
    boxes += [Box(str(i), column[1 + i], 0.0, width, 2 * _HALF) for i in range(nodes)]
    bus = _height(min(0, *lane, -1) - 1)
    straight, dropped = 1 + nodes in concat, sorted(concat - {1 + nodes})
    rows = ([0.0] if straight else []) + ([bus] if dropped else [])
    output = Box("c_{k}", column[-1] + (width + _OUTPUT) / 2 + _LAST_GAP, 0.0, _OUTPUT, 2 * _HALF)
    output = Box(output.name, output.x, sum(rows) / len(rows), _OUTPUT, max(rows) - min(rows) + 2 * _HALF)
    lines = [((column[-1] + width / 2, 0.0), (output.x - _OUTPUT / 2, 0.0))] if straight else []
    for state in dropped:
        end = (output.x - _OUTPUT / 2, bus)
        if state < 2:
            left, y = -_INPUT / 2, boxes[state].y
            lines.append(((left, y), (left - 0.2, y), (left - 0.2, bus), end))
        else:
            lines.append(((column[state - 1], -_HALF), (column[state - 1], bus), end))
    top = max(box.y + box.height / 2 for box in boxes)
    return Layout((*boxes, output), tuple(edges), tuple(lines), bus, max(top, *heights), min(bus, *heights))


def _height(lane: int) -> float:
    return 0.0 if lane == 0 else (abs(lane) - 1) * _LANE * _sign(lane) + _FIRST_LANE * _sign(lane)


def _sign(lane: int) -> int:
    return 1 if lane > 0 else -1


def _ports(genes: tuple[Gene, ...], lane: list[int]) -> dict[tuple[int, bool, bool], list[int]]:
    """(state, above?, leaving?) -> genes from left to right, ordered so that edges of one node do not cross."""
    ports: dict[tuple[int, bool, bool], list[int]] = defaultdict(list)
    for gene in sorted(range(len(genes)), key=lambda g: abs(lane[g])):
        if lane[gene]:
            ports[2 + gene // 2, lane[gene] > 0, False].append(gene)
        if lane[gene] and genes[gene][1] >= 2:  # the inputs' edges leave them sideways
            ports[genes[gene][1], lane[gene] > 0, True].insert(0, gene)
    return ports


def _input_box(state: int, genes: tuple[Gene, ...], heights: list[float]) -> Box:
    """The input's box, as tall as the lanes that leave it."""
    used = [y for y, (_, source) in zip(heights, genes, strict=True) if source == state]
    used = used or [_FIRST_LANE if state == 0 else -_FIRST_LANE]
    name = ("c_{k-2}", "c_{k-1}")[state]
    return Box(name, 0.0, (max(used) + min(used)) / 2, _INPUT, max(used) - min(used) + 0.4)
