"""Candidates and search spaces, as names."""

from fastdarts.spaces.candidates import CANDIDATES, SKELETONS, Skeleton
from fastdarts.spaces.darts import S0, S5
from fastdarts.spaces.file import SpaceError
from fastdarts.spaces.names import SPACES, named
from fastdarts.spaces.nasbench201 import NASBENCH201, Architecture, ArchitectureError
from fastdarts.spaces.robust import S1, S2, S3, S4
from fastdarts.spaces.space import KINDS, Kind, Space, Wiring

__all__ = [
    "CANDIDATES",
    "KINDS",
    "NASBENCH201",
    "S0",
    "S1",
    "S2",
    "S3",
    "S4",
    "S5",
    "SKELETONS",
    "SPACES",
    "Architecture",
    "ArchitectureError",
    "Kind",
    "Skeleton",
    "Space",
    "SpaceError",
    "Wiring",
    "named",
]
