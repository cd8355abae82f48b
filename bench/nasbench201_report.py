"""The table and the picture of bench.nasbench201's records."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fastdarts.report.style import FAMILIES, INK, MUTED, new_figure, save, tidy
from fastdarts.spaces.genotype import collapse_line
from fastdarts.spaces.nasbench201 import EDGES

COLUMN = "cifar10_test"
RANDOM = "random choice"
SHOWN = 0.05  # a recipe is called better than random choice if fewer of the draws do as well
COLOURS = tuple(line for line, _ in FAMILIES.values())
MARKERS = "os^Dv"
Record = Mapping[str, Any]


def markdown(records: Sequence[Record]) -> str:
    """Format a table of each recipe, random choice with the same seeds and in the mean; then how it was made."""
    found = [record for record in records if record["kind"] in ("search", "random")]
    (whole,) = (record for record in records if record["kind"] == "all")
    head = [
        "search",
        "true CIFAR-10 test accuracy, % (mean ± deviation)",
        "each seed",
        "ranks",
        "skips of 6",
        f"against {RANDOM}",
    ]
    lines = [head, ["---"] * len(head)]
    for group in (record for record in records if record["kind"] == "recipe"):
        own = [record for record in found if record["recipe"] == group["recipe"]]
        each = [f"{r['accuracies'][COLUMN]:.2f}" for r in own]
        deviation = "" if group["deviation"] is None else f" ± {group['deviation']:.2f}"
        ranks, skips = (
            ", ".join(map(str, column)) for column in ([r["ranks"][COLUMN] for r in own], [r["skips"] for r in own])
        )
        name = f"{RANDOM}, seeds {', '.join(map(str, group['seeds']))}" if group["recipe"] == RANDOM else f"`{group['recipe']}`"
        against = "—" if group["recipe"] == RANDOM else verdict(group)
        lines.append([name, f"{group['mean']:.2f}{deviation}", ", ".join(each), ranks, skips, against])
    mean, deviation, median = (whole[name][COLUMN] for name in ("mean", "deviation", "median"))
    lines.append([f"{RANDOM}, all {whole['cells']:,} cells", f"{mean:.2f} ± {deviation:.2f}, median {median:.2f}", *["—"] * 4])
    searches = [record for record in found if record["kind"] == "search"]
    facts = dict(searches[0]) | {"most": max(r["minutes"] for r in searches), "table": whole["benchmark"]}
    text = "{epochs} epochs on {train_images} + {val_images} images of {data}, batch {batch_size}, C = {init_channels}, "
    text += "{stage_cells} cells a stage, at most {most} minutes a run"
    return (
        "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{text.format(**facts)}; looked up in {facts['table']}.\n"
    )


def verdict(group: Record) -> str:
    """Plainly: whether a recipe's mean is above random choice's, and how easily that comes by chance."""
    above, seeds, chance, n = group["above"], group["above_seeds"], group["chance"], len(group["seeds"])
    figures = f"{above:+.2f} points to its mean, {seeds:+.2f} to that of the same seeds; {n} random cells do as well in "
    word = "beats it" if chance < SHOWN else "**not shown to beat it**"
    if min(above, seeds) <= 0:
        word = "**does not beat it**"
    return f"{word}: {figures}{100 * chance:.1f} % of draws"


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
    for axes, figure in ((skips, "skips"), (accuracy, COLUMN)):
        _lines(axes, searches, figure)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    skips.axhline(collapse_line(len(EDGES)), color=MUTED, linestyle="--", linewidth=1.2, label="a collapse begins")
    skips.set_ylim(-0.3, len(EDGES) + 0.3)
    accuracy.axhline(whole["mean"][COLUMN], color=MUTED, linestyle="--", linewidth=1.2, label="random choice, mean")
    for axes in (skips, accuracy):
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    save(skips.figure, path)


def _lines(axes: Axes, searches: Sequence[Record], figure: str) -> None:
    """Draw a line and a band for each recipe."""
    recipes = dict.fromkeys(record["recipe"] for record in searches)
    for recipe, colour, marker in zip(recipes, cycle(COLOURS), cycle(MARKERS), strict=False):
        own = [record["by_epoch"] for record in searches if record["recipe"] == recipe]
        epochs, points = own[0]["epoch"], list(zip(*(run[figure] for run in own), strict=True))
        label = f"{recipe}, {len(own)} seed{'s' * (len(own) > 1)}"
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.8}
        axes.plot(epochs, [fmean(values) for values in points], label=label, **style)
        low, high = ([pick(values) for values in points] for pick in (min, max))
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
