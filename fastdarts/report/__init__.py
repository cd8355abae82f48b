"""Reports on a run: drawings of cells, curves, reconstructions, and one HTML page.

matplotlib is imported on the first drawing, torch for pictures of tensors only.
"""

from importlib import import_module
from typing import Any

from fastdarts.report.drawing import NotDrawn, drawing, import_matplotlib
from fastdarts.report.page import write_report
from fastdarts.report.retrain import write_retrain_report
from fastdarts.report.run import ReportError

_DRAWINGS = {"draw_alpha": "curves", "draw_cell": "cells", "draw_collapse": "collapse", "draw_losses": "curves"}

__all__ = ["NotDrawn", "ReportError", "drawing", "picture_grid", "write_report", "write_retrain_report", *_DRAWINGS]


def __getattr__(name: str) -> Any:
    if name == "picture_grid":
        return import_module(f"{__name__}.pictures").picture_grid
    if name not in _DRAWINGS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_matplotlib()
    return getattr(import_module(f"{__name__}.{_DRAWINGS[name]}"), name)
