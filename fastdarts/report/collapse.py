"""Plot the indicators of collapse by epoch, in stacked panels, with the warning and the early stop marked.

`records` as in report/curves.py.
"""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fastdarts.report.curves import any_value, curve, epochs_of
from fastdarts.report.run import Record
from fastdarts.report.style import INK, KIND_COLOURS, MUTED, new_figure, own_style, save, tidy
from fastdarts.spaces.genotype import COLLAPSE_OF, collapse_line

_WIDTH, _HEIGHT, _HEAD = 12.5, 1.75, 0.9  # inches: of the figure, of a panel, of the space above and below them
_WARNING = "#b42318"
_PANELS = {
    "skips": "skip connections in the derived cell",
    "entropy": "entropy of the operations' weights (nats)",
    "skip_minus_conv": "weight of skip minus mean weight of convolutions",
}
_EIGENVALUE = "largest eigenvalue of the validation Hessian in alpha"


@own_style()
def draw_collapse(records: list[Record], path: str | Path) -> None:
    """Draw panels by epoch: for each kind of cell skips, entropy, skip minus convolutions; the eigenvalue if recorded.

    The dashed line is the threshold of the warning (genotype.collapse_line of a cell's operations), and rings mark the epochs
    with a warning. A line through all panels marks an early stop, another one the epoch of its result if that is earlier.
    """
    epochs = epochs_of(records)
    cells = [epoch.get("cells") or {} for epoch in epochs]
    kinds = list(dict.fromkeys(kind for cell in cells for kind in cell))
    lines = {name: {k: [cell.get(k, {}).get(name) for cell in cells] for k in kinds} for name in _PANELS}
    shown = {_PANELS[name]: by_kind for name, by_kind in lines.items() if name == "skips" or any_value(by_kind)}
    hessian = {"eigenvalue": [epoch.get("hessian") for epoch in epochs]}
    shown |= {_EIGENVALUE: hessian} if any_value(hessian) else {}
    figure = new_figure(_WIDTH, _HEAD + _HEIGHT * len(shown))
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, by_kind) in zip(panels, shown.items(), strict=True):
        tidy(axes, title)
        for (kind, values), marker in zip(by_kind.items(), "os^D", strict=False):
            curve(axes, epochs, values, label=kind, color=KIND_COLOURS.get(kind, MUTED), marker=marker)
        axes.label_outer()
    operations = {kind: max((cell.get(kind, {}).get("operations") or 0 for cell in cells), default=0) for kind in kinds}
    _warn(panels[0], epochs, lines["skips"], {kind: count or COLLAPSE_OF for kind, count in operations.items()})
    for axes in panels:
        _mark_stop(axes, epochs[-1].get("stopped"))
    legend = panels[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside upper right", ncols=max(1, len(legend[1])), frameon=False, fontsize=9, labelcolor=INK)
    save(figure, path)


def _warn(axes: Axes, epochs: list[Record], skips: dict[str, list[float | None]], operations: dict[str, int]) -> None:
    """Draw the threshold of the warning, and a ring around each point at or above it.

    operations  of the derived cell, by kind
    """
    for count in dict.fromkeys(operations.values()):
        line = collapse_line(count)
        axes.axhline(line, color=_WARNING, linestyle="--", linewidth=1.2, label=f"collapse: {line} of {count}")
    rings = [
        (epoch["epoch"], value)
        for kind, values in skips.items()
        for epoch, value in zip(epochs, values, strict=True)
        if value is not None and value >= collapse_line(operations[kind])
    ]
    if rings:
        ring: dict[str, Any] = {"marker": "o", "markersize": 10, "fillstyle": "none", "linestyle": "none", "gid": "warning"}
        axes.plot(*zip(*rings, strict=True), color=_WARNING, label="warning", **ring)
    axes.set_ylim(-0.3, max(operations.values(), default=COLLAPSE_OF) + 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _mark_stop(axes: Axes, stopped: dict[str, Any] | None) -> None:
    """Mark the end of an early-stopped search, and the epoch of its result if that differs."""
    if stopped is None:
        return
    rule, after, chosen = stopped["rule"], stopped["after"], stopped["epoch"]
    axes.axvline(after, color=INK, linewidth=1.4, label=f"early stop ({rule}) after epoch {after}", gid="stop")
    if chosen != after:
        axes.axvline(chosen, color=INK, linewidth=1.4, linestyle=":", label=f"result: epoch {chosen}", gid="result")
