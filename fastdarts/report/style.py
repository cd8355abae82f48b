"""How every figure looks: colours by family of operation, and one way to make and save a figure.

Figures are `matplotlib.figure.Figure` objects, never pyplot's global state, on a white ground, drawn inside `own_style`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdarts.spaces import CANDIDATES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, FAINT = "#1f2933", "#5f6b7a", "#d5dbe3"
KIND_COLOURS = {"normal": "#1f6fb4", "reduce": "#c2571a"}

# family: (line, tint)
FAMILIES = {
    "convolution": ("#1f6fb4", "#e6f1fa"),
    "dilated convolution": ("#7b4ab5", "#f1eafa"),
    "pooling": ("#2b8a57", "#e4f4eb"),
    "skip": ("#d0661a", "#fdeee2"),
    "other": ("#5f6b7a", "#eef0f3"),
}
_REGISTERED = {"conv": "convolution", "pool": "pooling", "skip": "skip", "none": "other", "noise": "other"}
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "fastdarts"}
_LINES = (("-", "o"), ((0, (5, 1.5)), "s"), ((0, (1, 1.2)), "^"), ((0, (5, 1.5, 1, 1.5)), "D"))  # dashes, marker


def family(op: str) -> str:
    """The key of FAMILIES that an operation belongs to: a registered one as it was registered, any other by its name."""
    if op.startswith("dil_"):
        return "dilated convolution"
    if op in CANDIDATES:
        return _REGISTERED[CANDIDATES[op].family]
    for part, name in (("pool", "pooling"), ("conv", "convolution"), ("skip", "skip"), ("identity", "skip")):
        if part in op:
            return name
    return "other"


def op_styles(ops: list[str]) -> list[dict]:
    """Line settings for each operation: the family's colour, and dashes and a marker of its own within the family."""
    families = [family(op) for op in ops]
    ranks = [families[:number].count(name) % len(_LINES) for number, name in enumerate(families)]
    keys = ("color", "linestyle", "marker")
    return [
        dict(zip(keys, (FAMILIES[name][0], *_LINES[rank]), strict=True)) for name, rank in zip(families, ranks, strict=True)
    ]


def printable(text: str, limit: int = 32) -> str:
    """`text` on one line, without control characters, cut to `limit` characters."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= limit else line[: limit - 1] + "…"


@contextmanager
def own_style() -> Generator[None]:
    """Inside, figures are of matplotlib's defaults, whatever the user's matplotlibrc or styles say. Also a decorator."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of width x height inches that lays out its axes by itself."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.12, h_pad=0.12)
    return figure


def tidy(axes: Axes, title: str, xlabel: str = "epoch") -> None:
    """Title, x label, a light grid, and no frame on the right and the top."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel(xlabel, color=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=MUTED, labelsize=9)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: Figure, path: str | Path) -> None:
    """Write `path`.svg (text stays text; the same bytes each time) and `path`.png. Raises OSError."""
    with own_style():
        figure.savefig(f"{path}.svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        figure.set_layout_engine("none")  # the layout just found holds for both
        figure.savefig(f"{path}.png", dpi=150, metadata={"Software": None})
