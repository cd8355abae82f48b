"""Curves of a search: losses and architecture weights; helpers that report/collapse.py shares.

`records` are the lines of a run's metrics.jsonl as dicts, of both kinds ("epoch" and "step"), with at least one epoch.
Values that are None or absent are skipped, NaN leaves a gap. Each function writes `path`.svg and `path`.png;
it raises ValueError if there is nothing to draw, OSError if it cannot write.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fastdarts.report.heatmap import candidate_columns, draw_heat_map, spread
from fastdarts.report.run import Record, chosen_of
from fastdarts.report.style import INK, MUTED, new_figure, op_styles, own_style, save, tidy
from fastdarts.spaces.genotype import read_architecture

_WIDTH = 12.5  # inches
_MOST_POINTS = 2000  # of one line; longer ones are thinned
_FEW_EPOCHS = 25  # up to this number each epoch has its marker
_TRAIN, _ALPHA, _VALID, _TEST = "#1f6fb4", "#7b4ab5", "#2b8a57", "#c2571a"
_EVALUATIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (  # of a training: key of the record, label, style
    ("valid", "held back", {"color": _VALID}),
    ("valid_ema", "held back, moving average", {"color": _VALID, "linestyle": "--"}),
    ("test", "test", {"color": _TEST, "linewidth": 2.2}),
    ("test_ema", "test, moving average", {"color": _TEST, "linestyle": "--"}),
)


@own_style()
def draw_losses(records: list[Record], path: str | Path) -> None:
    """Draw training and architecture loss by step and epoch, validation loss with its baseline, and other metrics."""
    epochs = epochs_of(records)
    valid = [epoch.get("valid") or {} for epoch in epochs]
    others = list(dict.fromkeys(name for figures in valid for name in figures if name not in ("loss", "baseline")))
    panels = new_figure(_WIDTH, 3.9).subplots(1, 1 + len(others), squeeze=False, width_ratios=[2.5] + [1] * len(others))
    losses, *panels = panels[0]
    tidy(losses, "losses")
    for name, label, colour in (("train_loss", "train", _TRAIN), ("alpha_loss", "architecture step", _ALPHA)):
        _by_step(losses, records, epochs, name, label, colour)
    curve(losses, epochs, [v.get("loss") for v in valid], label="validation", color=_VALID, linewidth=2.2)
    baseline = [v.get("baseline") for v in valid]
    curve(losses, epochs, baseline, label="validation baseline", color=MUTED, linestyle="--")
    losses.legend(frameon=False, fontsize=9, labelcolor=INK)
    for axes, name in zip(panels, others, strict=True):
        tidy(axes, f"validation {name}")
        curve(axes, epochs, [v.get(name) for v in valid], color=_VALID, linewidth=2.2)
    save(losses.figure, path)


@own_style()
def draw_retrain_losses(records: list[Record], path: str | Path) -> None:
    """Draw the training loss by step and epoch, and the losses of the evaluations."""
    epochs = epochs_of(records)
    figure = new_figure(_WIDTH, 3.9)
    axes = figure.subplots()
    tidy(axes, "losses")
    _by_step(axes, records, epochs, "train_loss", "train", _TRAIN)
    for name, label, style in _EVALUATIONS:
        curve(axes, epochs, [(r.get(name) or {}).get("loss") for r in epochs], label=label, **style)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    save(figure, path)


@own_style()
def draw_accuracy(records: list[Record], path: str | Path) -> None:
    """Draw the top-1 accuracy of each evaluation, in percent."""
    epochs = epochs_of(records)
    lines = {name: [(r.get(name) or {}).get("top1") for r in epochs] for name, _, _ in _EVALUATIONS}
    if not any_value(lines):
        raise ValueError("no epoch was evaluated")
    figure = new_figure(_WIDTH, 3.9)
    axes = figure.subplots()
    tidy(axes, "top-1 accuracy in %")
    for name, label, style in _EVALUATIONS:
        if any_value({name: lines[name]}):
            curve(axes, epochs, [None if v is None else 100 * v for v in lines[name]], label=label, **style)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    save(figure, path)


@own_style()
def draw_alpha(records: list[Record], settings: dict[str, Any], path: str | Path) -> None:
    """Draw, for each kind of cell, each operation's mean relaxed weight by epoch, and all weights of the result's epoch.

    That is the last epoch, or the one that an early stop chose.

    settings  the content of settings.json; its `candidates` name the operations of each edge, unless an epoch has its own
    """
    epochs = [epoch for epoch in epochs_of(records) if epoch.get("ops")]
    if not epochs:
        raise ValueError("no epoch's record contains the operations' weights")
    shown = chosen_of(epochs)
    number = epochs.index(shown)
    candidates = settings.get("candidates") or {}
    wirings = read_architecture(shown["genotype"]).wirings() if shown.get("genotype") else {}
    heights = [max(9, len(rows)) for rows in shown["ops"].values()]
    figure = new_figure(_WIDTH, 1.6 + 0.27 * sum(heights))
    panels = figure.subplots(len(heights), 2, squeeze=False, width_ratios=[1, 1.5], height_ratios=heights)
    for kind, (left, right) in zip(shown["ops"], panels, strict=True):
        ops, tables = _tables(epochs, kind, candidates)
        tidy(left, f"{kind}: mean weight over the edges")
        means = np.ma.stack([table.mean(axis=0) for table in tables]).filled(np.nan)
        for op, style, line in zip(ops, op_styles(ops), means.T.tolist(), strict=True):
            curve(left, epochs, line, label=op, **style)
        place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
        left.legend(frameon=False, fontsize=8, handlelength=3, labelcolor=INK, **place)
        edges = (shown.get("edges") or {}).get(kind)
        title = f"{kind}: weights after epoch {shown['epoch']}"
        draw_heat_map(right, tables[number], ops, edges, wirings.get(kind), title)
    save(figure, path)


def _by_step(axes: Axes, records: list[Record], epochs: list[Record], name: str, label: str, colour: str) -> None:
    """Plot a loss, pale by step and solid by epoch."""
    per_epoch = (epochs[-1].get("step") or 0) / epochs[-1]["epoch"] or 1
    steps = [record for record in records if record["kind"] == "step"]
    steps = steps[:: 1 + len(steps) // _MOST_POINTS]
    _line(axes, [r["step"] / per_epoch for r in steps], [r.get(name) for r in steps], color=colour, alpha=0.3)
    curve(axes, epochs, [r.get(name) for r in epochs], label=label, color=colour)


def _tables(
    epochs: list[Record], kind: str, candidates: dict[str, list[list[str]]]
) -> tuple[list[str], list[np.ma.MaskedArray]]:
    """Return all operations of the epochs, and each epoch's weights with one column per operation."""
    rows = [epoch["ops"].get(kind, []) for epoch in epochs]
    lists = [(epoch.get("candidates") or candidates).get(kind) for epoch in epochs]
    each = [candidate_columns(*pair) for pair in zip(rows, lists, strict=True)]
    ops = list(dict.fromkeys(op for own, _ in each for op in own))
    columns = [[[ops.index(own[column]) for column in edge] for edge in edges] for own, edges in each]
    return ops, [spread(*pair, len(ops)) for pair in zip(rows, columns, strict=True)]


def epochs_of(records: list[Record]) -> list[Record]:
    """Return the records of epochs. Raises ValueError if there are none."""
    epochs = [record for record in records if record["kind"] == "epoch"]
    if not epochs:
        raise ValueError("no epoch is finished yet, nothing to draw")
    return epochs


def any_value(lines: dict[str, list[float | None]]) -> bool:
    """Return whether any line has a point."""
    return any(value is not None for line in lines.values() for value in line)


def curve(axes: Axes, epochs: list[Record], values: list[float | None], **style: Any) -> None:
    """Plot a line over whole epochs, from 0 to slightly past the last, also for a single epoch."""
    last = epochs[-1]["epoch"]
    style = {"linewidth": 1.7, "marker": "o", "markersize": 4.5} | style
    _line(axes, [e["epoch"] for e in epochs], values, **style | ({"marker": ""} if len(epochs) > _FEW_EPOCHS else {}))
    axes.set_xlim(0, last + max(0.35, 0.03 * last))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _line(axes: Axes, xs: Sequence[float], values: Sequence[float | None], **style: Any) -> None:
    points = [(x, value) for x, value in zip(xs, values, strict=True) if value is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
