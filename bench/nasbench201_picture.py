"""The picture of bench.nasbench201: what the searches stood at after each epoch."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fastdarts.genotype import collapse_line
from fastdarts.report.style import FAMILIES, INK, MUTED, new_figure, save, tidy
from fastdarts.spaces.nasbench201 import EDGES

COLOURS = tuple(line for line, _ in FAMILIES.values())
MARKERS = "os^Dv"
Record = Mapping[str, Any]


def draw(records: Sequence[Record], path: str | Path) -> None:
    """Write `path`.svg and `path`.png: skips of the derived cell and its true CIFAR-10 test accuracy by epoch.

    records  bench.nasbench201's. A line is the mean of a recipe's seeds, its band reaches from the lowest to the highest;
             dashed are where a collapse begins, and the mean accuracy of all cells, which is random choice's

    Raises OSError.
    """
    searches = [record for record in records if record["kind"] == "search"]
    (whole,) = (record for record in records if record["kind"] == "all")
    skips, accuracy = new_figure(12.5, 4.2).subplots(1, 2)
    tidy(skips, f"skip connections in the derived cell, of {len(EDGES)}")
    tidy(accuracy, "true CIFAR-10 test accuracy of the derived cell, %")
    for axes, figure in ((skips, "skips"), (accuracy, "cifar10_test")):
        _lines(axes, searches, figure)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    skips.axhline(collapse_line(len(EDGES)), color=MUTED, linestyle="--", linewidth=1.2, label="a collapse begins")
    skips.set_ylim(-0.3, len(EDGES) + 0.3)
    accuracy.axhline(whole["mean"]["cifar10_test"], color=MUTED, linestyle="--", linewidth=1.2, label="random choice, mean")
    for axes in (skips, accuracy):
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    save(skips.figure, path)


def _lines(axes: Axes, searches: Sequence[Record], figure: str) -> None:
    """A line and a band for each recipe."""
    recipes = dict.fromkeys(record["recipe"] for record in searches)
    for recipe, colour, marker in zip(recipes, cycle(COLOURS), cycle(MARKERS), strict=False):
        own = [record["by_epoch"] for record in searches if record["recipe"] == recipe]
        epochs, points = own[0]["epoch"], list(zip(*(run[figure] for run in own), strict=True))
        label = f"{recipe}, {len(own)} seed{'s' * (len(own) > 1)}"
        style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.8}
        axes.plot(epochs, [fmean(values) for values in points], label=label, **style)
        low, high = ([pick(values) for values in points] for pick in (min, max))
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
