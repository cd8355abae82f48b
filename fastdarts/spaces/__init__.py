"""WHAT may be chosen: candidates and search spaces, as names."""

from fastdarts.spaces.candidates import CANDIDATES
from fastdarts.spaces.darts import S0
from fastdarts.spaces.space import KINDS, Kind, Space

__all__ = ["CANDIDATES", "KINDS", "S0", "Kind", "Space"]
