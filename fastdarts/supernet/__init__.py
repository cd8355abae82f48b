"""HOW all choices run at once: mixed edges, cells, the network."""

from fastdarts.supernet.cell import Cell, CellWeights
from fastdarts.supernet.mixed import MixedEdges
from fastdarts.supernet.network import Supernet

__all__ = ["Cell", "CellWeights", "MixedEdges", "Supernet"]
