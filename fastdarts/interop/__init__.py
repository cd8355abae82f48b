"""Convert networks of other codebases to fused ops: convert, revert, verify. Imports `ops`, nothing of a search."""

from fastdarts.interop.conversion import ConvertError, Line, Report, convert, revert
from fastdarts.interop.verify import Comparison, verify

__all__ = ["Comparison", "ConvertError", "Line", "Report", "convert", "revert", "verify"]
