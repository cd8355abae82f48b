"""Other people's search networks, made fast: convert, revert, verify. It imports `ops`, and nothing of a search."""

from fastdarts.interop.conversion import ConvertError, Line, Report, convert, revert
from fastdarts.interop.verify import Comparison, verify

__all__ = ["Comparison", "ConvertError", "Line", "Report", "convert", "revert", "verify"]
