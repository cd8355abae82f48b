"""Discrete networks: the network that is trained from a found cell, in plain PyTorch."""

from fastdarts.networks.base import NETWORKS, DiscreteNetwork, NetworkKind, NetworkShape, Outputs
from fastdarts.networks.build import build
from fastdarts.networks.checkpoint import CheckpointError, Published, load_published, read_published
from fastdarts.spaces.architecture import architecture_of

__all__ = [
    "NETWORKS",
    "CheckpointError",
    "DiscreteNetwork",
    "NetworkKind",
    "NetworkShape",
    "Outputs",
    "Published",
    "architecture_of",
    "build",
    "load_published",
    "read_published",
]
