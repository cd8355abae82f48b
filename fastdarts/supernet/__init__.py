"""HOW all choices run at once: mixed edges, cells, the network."""

from fastdarts.supernet.cell import Cell, CellWeights, MixedOp, channel_shuffle
from fastdarts.supernet.network import Supernet

__all__ = ["Cell", "CellWeights", "MixedOp", "Supernet", "channel_shuffle"]
