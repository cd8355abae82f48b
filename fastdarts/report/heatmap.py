"""A cell's relaxed weights as a table of edges and operations.

Notation: E edges of a cell, K places in a record's row (padded), O names of operations in the whole cell.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from fastdarts.report.style import FAINT, INK, MUTED, printable
from fastdarts.spaces import Wiring


def candidate_columns(rows: list[list[float]], candidates: list[list[str]] | None) -> tuple[list[str], list[list[int]]]:
    """Return the operations of all edges in order of appearance (O), and for each edge the columns of its candidates.

    rows        E lists of K weights
    candidates  E lists of names, or None to number the places
    """
    names = candidates or [[f"op {position}" for position in range(len(row))] for row in rows]
    ops = list(dict.fromkeys(name for edge in names for name in edge))
    return ops, [[ops.index(name) for name in edge] for edge in names]


def spread(rows: list[list[float]], columns: list[list[int]], width: int) -> np.ma.MaskedArray:
    """Return float64 (E, O), masked where an operation is not among an edge's candidates; padding is dropped."""
    table = np.full((len(columns), width), np.nan)
    for edge, (row, positions) in enumerate(zip(rows, columns, strict=False)):
        for weight, position in zip(row, positions, strict=False):
            table[edge, position] = weight
    return np.ma.masked_invalid(table)


def edge_pairs(count: int, inputs: int = 2) -> list[tuple[int, int]]:
    """Return (input state, node) of each of E edges, node by node, as every DARTS codebase numbers them."""
    pairs = [(state, node) for node in range(count) for state in range(inputs + node)]
    return pairs[:count]


def draw_heat_map(
    axes: Axes,
    weights: np.ma.MaskedArray,
    ops: list[str],
    edges: list[float] | None,
    wiring: Wiring | None,
    title: str,
) -> None:
    """Draw the (E, O) weights as a table: rows are edges, framed cells are the genotype's choice, blank ones no candidates.

    edges   the E edge weights (PC-DARTS' edge normalisation), printed with the edges' names, or None
    wiring  the genotype's cell, or None: a DARTS cell without a choice
    """
    inputs, genes, *_ = wiring or Wiring(("c_{k-2}", "c_{k-1}"), (), ())
    pairs = edge_pairs(len(weights), len(inputs))
    top = max(float(weights.max()), 1e-12) if weights.count() else 1.0
    axes.pcolormesh(weights, cmap="Blues", vmin=0, vmax=top, edgecolors="white", linewidth=1.2)
    for (row, column), weight in np.ndenumerate(weights.filled(np.nan)):
        if np.isfinite(weight):
            colour = "white" if weight > 0.6 * top else INK
            position: dict[str, Any] = {"ha": "center", "va": "center", "in_layout": False}
            axes.text(column + 0.5, row + 0.5, f"{weight:.2f}", fontsize=7.5, color=colour, **position)
    for op, state, node in genes:
        if op in ops and (state, node) in pairs:
            corner = ops.index(op) + 0.03, pairs.index((state, node)) + 0.04
            axes.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, edgecolor="#d0661a", linewidth=2))
    names = [f"{(*inputs, *map(str, range(node)))[state]} → {node}" for state, node in pairs]
    if edges:
        names = [f"{name}   β {beta:.2f}" for name, beta in zip(names, edges, strict=False)] + names[len(edges) :]
    axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=8, parse_math=False)
    columns: dict[str, Any] = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(np.arange(len(ops)) + 0.5, map(printable, ops), fontsize=8, parse_math=False, **columns)
    axes.set_ylim(len(pairs), 0)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_title("framed: chosen", loc="right", fontsize=8.5, color=MUTED)
    axes.tick_params(length=0, colors=MUTED)
    axes.set_facecolor(FAINT)
    axes.spines[:].set_visible(False)
