"""Plot of a sweep: one figure over the first axis, a line for each value of the others, with its spread."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from fastdarts.report.style import INK, MUTED, new_figure, own_style, save, tidy
from fastdarts.sweep.results import Group, Spread

_COLOURS = ("#1f6fb4", "#c2571a", "#2b8a57", "#7b4ab5", "#5f6b7a")
_MARKERS = "os^Dv"
Point = tuple[Any, Spread]


def lines(groups: Sequence[Group], metric: str) -> dict[str, list[Point]]:
    """Return the points (value on the first axis, spread) of each line, by its label of the other axes' values."""
    found: dict[str, list[Point]] = {}
    for group in groups:
        (_, x), *others = group.values.items()
        if metric in group.figures:
            found.setdefault(", ".join(f"{axis} {value}" for axis, value in others), []).append((x, group.figures[metric]))
    return found


@own_style()
def draw_sweep(groups: Sequence[Group], metric: str, path: Path) -> None:
    """Write `path`.svg and `path`.png: mean and standard deviation of `metric` over the first axis of `groups`.

    Non-numeric values are placed as categories. Raises OSError, and ValueError if there is nothing to draw.
    """
    found = lines(groups, metric)
    if not found:
        raise ValueError(f"no finished run has a {metric}")
    figure = new_figure(7.2, 4.2)
    axes = figure.subplots()
    xs = list(dict.fromkeys(group.values[next(iter(group.values))] for group in groups))
    numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x in xs)
    places = {x: x if numeric else place for place, x in enumerate(xs)}
    for (label, points), colour, marker in zip(found.items(), cycle(_COLOURS), cycle(_MARKERS), strict=False):
        spreads = [spread for _, spread in points]
        means = [spread.mean for spread in spreads]
        deviations = [spread.deviation or 0.0 for spread in spreads]
        style: dict[str, Any] = {"color": colour, "marker": marker, "linewidth": 1.8, "capsize": 4.0, "elinewidth": 1.2}
        axes.errorbar([places[x] for x, _ in points], means, yerr=deviations, label=label, **style)
    counts = sorted({spread.n for points in found.values() for _, spread in points})
    runs = " or ".join(map(str, counts))
    tidy(axes, metric, next(iter(groups[0].values)))
    axes.set_ylabel(f"mean ± standard deviation, n = {runs}" if counts != [1] else "one run each", color=MUTED)
    axes.set_xticks(list(places.values()), [str(x) for x in xs])
    if any(found):
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    save(figure, path)
