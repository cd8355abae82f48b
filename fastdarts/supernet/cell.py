"""A cell: two preprocess layers, then its mixed edges.

Notation: N images, C channels of a node, k the divisor of partial channels, H W pixels, E edges, K candidates.
"""

from typing import NamedTuple

from torch import Tensor, nn

from fastdarts.spaces import Kind, Space
from fastdarts.supernet.drop_path import EdgeDropPath
from fastdarts.supernet.eager_candidates import mixed_edges
from fastdarts.supernet.preprocess import FactorizedReduce, ReLUConvBN, run_together


class CellWeights(NamedTuple):
    """Weights of a kind of cell: any real numbers, not necessarily on the simplex.

    ops    (E, K): the weight of candidate k on edge e; columns past an edge's own list are ignored
    edges  (E,) or None: the weight of edge e (PC-DARTS' edge normalisation, beta); None is 1
    """

    ops: Tensor
    edges: Tensor | None = None


class CellModules(nn.Module):
    """Two preprocess layers and `nodes` nodes; node i sums its edges from all earlier states; the nodes are concatenated.

    backend       of ops.relu_conv_bn and ops.mixed_cell
    skip_dropout  apply dropout to skips of stride 1 (P-DARTS; see supernet.eager_candidates.SkipDropout)
    drop_path     drop whole edges of each image (R-DARTS; see supernet.drop_path.EdgeDropPath)
    """

    def __init__(
        self,
        space: Space,
        kind: Kind,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction_prev: bool,
        partial_channels: int = 1,
        backend: str = "auto",
        skip_dropout: bool = False,
        drop_path: bool = False,
    ) -> None:
        super().__init__()
        self.space, self.kind = space, kind
        self.drop_path = EdgeDropPath() if drop_path else None
        self.preprocess0 = (FactorizedReduce if reduction_prev else ReLUConvBN)(C_prev_prev, C, backend)
        self.preprocess1 = ReLUConvBN(C_prev, C, backend)
        self._ops = mixed_edges(space, kind, C, partial_channels, backend, skip_dropout=skip_dropout)

    def mixed(self, s0: Tensor, s1: Tensor, weights: CellWeights, channels: Tensor | None = None) -> Tensor:
        """s0, s1: outputs of the two previous cells; channels int64 (E, C/k) or None (the first C/k on each edge).

        Returns (N, nodes * C, H', W'), where H' W' are those of s1, halved in a reduction cell.
        """
        layers = self.preprocess0, self.preprocess1
        together = self._ops.sync is not None
        inputs = run_together(layers, (s0, s1)) if together else [layer(s) for layer, s in zip(layers, (s0, s1), strict=True)]
        edges = weights.edges
        if self.drop_path is not None:
            edges = self.drop_path(inputs[0], edges, len(weights.ops))
        return self._ops(list(inputs), weights.ops, edges, channels)


class SupernetCell(CellModules):
    """As CellModules, called like `mixed`."""

    forward = CellModules.mixed
