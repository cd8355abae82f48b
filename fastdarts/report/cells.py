"""Draw a cell: inputs, nodes, the operation on each edge, and the concatenated output, left to right."""

from pathlib import Path as FilePath

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch
from matplotlib.path import Path

from fastdarts.report.layout import FONT, Box, DrawnEdge, Point, place
from fastdarts.report.style import FAMILIES, INK, MUTED, family, own_style, save
from fastdarts.spaces import Architecture
from fastdarts.spaces.genotype import Genotype

_RADIUS, _MARGIN, _HEAD = 0.16, 0.3, 0.5
_CONCAT = "#9aa5b1"


@own_style()
def draw_cell(genotype: Genotype | Architecture, kind: str, path: str | FilePath) -> None:
    """Draw the `normal` or `reduce` cell of an architecture to `path`.svg and `path`.png.

    Edges show their operations' names in the colour of their family; the grey line is the concatenation. The SVG
    keeps text as text and is reproducible byte for byte. Raises ValueError for another `kind`, OSError.
    """
    save(cell_figure(genotype, kind), path)


@own_style()
def cell_figure(genotype: Genotype | Architecture, kind: str) -> Figure:
    """Return the drawing as a Figure in inches (one data unit each); its artists have the gids `box-NAME` and `op-GENE`."""
    if (wiring := genotype.wirings().get(kind)) is None:
        raise ValueError(f"a cell is {' or '.join(genotype.wirings())}, not {kind!r}")
    layout = place(wiring)
    left, right = -layout.boxes[0].width / 2 - _MARGIN, layout.boxes[-1].x + layout.boxes[-1].width / 2 + _MARGIN
    bottom, top = layout.bottom - _MARGIN - 0.1, layout.top + _MARGIN + _HEAD
    figure = Figure(figsize=(right - left, top - bottom), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    axes.text(left + _MARGIN, top - _MARGIN, f"{kind} cell", fontsize=13, fontweight="bold", color=INK, va="center")
    present = {family(edge.op) for edge in layout.edges}
    meaning = [Line2D([], [], color=FAMILIES[n][0], linewidth=3, label=n) for n in FAMILIES if n in present]
    axes.legend(
        handles=meaning,
        ncols=len(meaning),
        loc="center right",
        bbox_to_anchor=(right - _MARGIN + 0.1, top - _MARGIN),
        bbox_transform=axes.transData,
        frameon=False,
        fontsize=9,
        labelcolor=MUTED,
    )
    for line in layout.concat:
        axes.add_patch(_arrow(_rounded(line), _CONCAT, 1.3))
    if any(len(line) > 2 for line in layout.concat):
        output = layout.boxes[-1]
        x = output.x - output.width / 2 - 0.42
        axes.text(x, layout.bus + 0.08, "concat", color=MUTED, fontsize=8, ha="center", va="bottom")
    for edge in layout.edges:
        path = _rounded(edge.points)
        axes.add_patch(PathPatch(path, facecolor="none", edgecolor="white", linewidth=5))  # the upper of two crossing lines
        axes.add_patch(_arrow(path, FAMILIES[family(edge.op)][0], 1.7))
    for box in layout.boxes:
        _box(axes, box)
    for gene, edge in enumerate(layout.edges):
        _name(axes, edge, f"op-{gene}")
    return figure


def _arrow(path: Path, colour: str, width: float) -> FancyArrowPatch:
    head = "-|>,head_length=0.42,head_width=0.2"
    return FancyArrowPatch(path=path, arrowstyle=head, mutation_scale=13, color=colour, linewidth=width, capstyle="butt")


def _rounded(points: tuple[Point, ...]) -> Path:
    """Return the polyline of horizontal and vertical segments with rounded corners."""
    vertices, codes = [points[0]], [Path.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        vertices += [_toward(corner, before), corner, _toward(corner, after)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    return Path([*vertices, points[-1]], [*codes, Path.LINETO])


def _toward(corner: Point, other: Point) -> Point:
    """Return the point where the rounding of `corner` begins on the way to `other`."""
    x, y = other[0] - corner[0], other[1] - corner[1]
    length = abs(x) + abs(y)  # one of them is zero
    part = min(_RADIUS, length / 2) / length
    return corner[0] + part * x, corner[1] + part * y


def _box(axes: Axes, box: Box) -> None:
    outer = not box.name.isdecimal()
    axes.add_patch(
        FancyBboxPatch(
            (box.x - box.width / 2, box.y - box.height / 2),
            box.width,
            box.height,
            boxstyle="round,pad=0,rounding_size=0.09",
            facecolor="#eef1f5" if outer else "#fff6d6",
            edgecolor=MUTED if outer else "#a58a1f",
            linewidth=1.2,
            gid=f"box-{box.name}",
        )
    )
    axes.text(box.x, box.y, box.name, fontsize=11, color=INK, ha="center", va="center_baseline", parse_math=False)


def _name(axes: Axes, edge: DrawnEdge, gid: str) -> None:
    colour, tint = FAMILIES[family(edge.op)]
    pill = {"boxstyle": "round,pad=0.28,rounding_size=0.5", "facecolor": tint, "edgecolor": colour, "linewidth": 0.9}
    axes.text(
        *edge.label,
        edge.op,
        fontsize=FONT,
        family="monospace",
        color=INK,
        ha="center",
        va="center_baseline",
        bbox=pill,
        parse_math=False,
        gid=gid,
    )
