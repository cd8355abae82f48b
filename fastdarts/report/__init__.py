"""What a person looks at: drawings of cells, curves, reconstructions, and one HTML page about a run."""

from fastdarts.report.cells import draw_cell
from fastdarts.report.collapse import draw_collapse
from fastdarts.report.curves import draw_alpha, draw_losses
from fastdarts.report.page import write_report
from fastdarts.report.pictures import picture_grid
from fastdarts.report.run import ReportError

__all__ = ["ReportError", "draw_alpha", "draw_cell", "draw_collapse", "draw_losses", "picture_grid", "write_report"]
