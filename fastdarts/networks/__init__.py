"""Discrete networks: the network that is trained from a found cell."""

from fastdarts.networks.base import NETWORKS, STANDARD, DiscreteNetwork, NetworkKind, NetworkShape, Outputs
from fastdarts.networks.build import build, standard_shape
from fastdarts.networks.checkpoint import CheckpointError, Published, load_published, read_published
from fastdarts.networks.counters import count, widest
from fastdarts.networks.folder import Exported, read_network, write_network
from fastdarts.spaces.architecture import architecture_of

__all__ = [
    "NETWORKS",
    "STANDARD",
    "CheckpointError",
    "DiscreteNetwork",
    "Exported",
    "NetworkKind",
    "NetworkShape",
    "Outputs",
    "Published",
    "architecture_of",
    "build",
    "count",
    "load_published",
    "read_network",
    "read_published",
    "standard_shape",
    "widest",
    "write_network",
]
