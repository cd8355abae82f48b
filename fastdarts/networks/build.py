"""Build the network of any architecture."""

from fastdarts.networks.base import DiscreteNetwork, NetworkShape
from fastdarts.networks.darts import DartsNetwork
from fastdarts.networks.nasbench201 import NASBench201Network
from fastdarts.spaces import Architecture
from fastdarts.spaces.genotype import Genotype


def build(architecture: Genotype | Architecture, shape: NetworkShape) -> DiscreteNetwork:
    """Build the network of an architecture, with torch's initial weights on the default device.

    Raises ValueError, in one line, for an architecture of another network, an unknown operation, and sizes that do not fit.
    """
    if shape.kind == "nasbench201" and isinstance(architecture, Architecture):
        return NASBench201Network(architecture, shape)
    if shape.kind != "nasbench201" and isinstance(architecture, Genotype):
        return DartsNetwork(architecture, shape)
    has = "a genotype is of DARTS' networks, cifar or imagenet"
    if isinstance(architecture, Architecture):
        has = "a cell of NAS-Bench-201 is of its own network, nasbench201"
    raise ValueError(f"network {shape.kind}: {has}")
