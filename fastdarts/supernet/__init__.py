"""Supernets, which run all candidates at once: mixed edges, cells, networks."""

from fastdarts.supernet.base import ChannelSampling, Network
from fastdarts.supernet.cell import Cell, CellWeights
from fastdarts.supernet.eager_candidates import register_candidate, same_draws
from fastdarts.supernet.mixed import MixedEdges
from fastdarts.supernet.nasbench201 import BatchNormMode, NASBench201Supernet
from fastdarts.supernet.network import Supernet

__all__ = [
    "BatchNormMode",
    "Cell",
    "CellWeights",
    "ChannelSampling",
    "MixedEdges",
    "NASBench201Supernet",
    "Network",
    "Supernet",
    "register_candidate",
    "same_draws",
]
