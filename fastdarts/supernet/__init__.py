"""Supernets, which run all candidates at once: mixed edges, cells, networks."""

from fastdarts.supernet.base import ChannelSampling, Network
from fastdarts.supernet.cell import CellWeights, SupernetCell
from fastdarts.supernet.eager_candidates import register_candidate, shared_noise
from fastdarts.supernet.mixed import MixedEdges
from fastdarts.supernet.nasbench201 import BatchNormMode, NASBench201Supernet
from fastdarts.supernet.network import Supernet

__all__ = [
    "BatchNormMode",
    "CellWeights",
    "ChannelSampling",
    "MixedEdges",
    "NASBench201Supernet",
    "Network",
    "Supernet",
    "SupernetCell",
    "register_candidate",
    "shared_noise",
]
