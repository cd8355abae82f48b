"""WHAT may be chosen: candidates and search spaces, as names."""

from fastdarts.spaces.candidates import CANDIDATES, SKELETONS, Skeleton
from fastdarts.spaces.darts import S0
from fastdarts.spaces.nasbench201 import NASBENCH201, Architecture
from fastdarts.spaces.space import KINDS, Kind, Space, Wiring

__all__ = ["CANDIDATES", "KINDS", "NASBENCH201", "S0", "SKELETONS", "Architecture", "Kind", "Skeleton", "Space", "Wiring"]
