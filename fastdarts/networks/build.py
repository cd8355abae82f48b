"""Build the network of any architecture, and the shape of the network that papers report."""

from dataclasses import replace

from fastdarts.networks.base import STANDARD, DiscreteNetwork, NetworkKind, NetworkShape
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


def standard_shape(architecture: Genotype | Architecture, kind: NetworkKind | None = None, **sizes: int | None) -> NetworkShape:
    """Return the shape of the network that papers report, STANDARD, with other sizes where given.

    kind   None: nasbench201 for a cell of NAS-Bench-201, else cifar
    sizes  init_channels, layers, num_classes, image_size; None: the standard one
    Raises ValueError for sizes that no network has.
    """
    standard = STANDARD[kind or ("nasbench201" if isinstance(architecture, Architecture) else "cifar")]
    return replace(standard, **{name: size for name, size in sizes.items() if size is not None})
