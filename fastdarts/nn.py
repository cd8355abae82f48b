"""Building blocks for custom search networks: MixedOp and Cell with DARTS' signatures, and the ops as functions.

Notation: N images, C channels of a node, k the divisor of partial channels, H W pixels, E edges, K candidates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdarts.kernels.graph import Edge, Graph
from fastdarts.ops.masked_loss import masked_loss
from fastdarts.ops.mixed_cell import channel_shuffle, mixed_cell
from fastdarts.ops.patch_mask import patch_mask
from fastdarts.ops.relu_conv_bn import relu_conv_bn
from fastdarts.spaces import S0, Space
from fastdarts.supernet.candidates import NAMES, names_of_edge
from fastdarts.supernet.cell import CellModules, CellWeights
from fastdarts.supernet.mixed import PackedEdges

__all__ = ["Cell", "MixedOp", "channel_shuffle", "masked_loss", "mixed_cell", "patch_mask", "relu_conv_bn"]

PRIMITIVES = S0.normal[0]  # DARTS' candidates, in the order of its checkpoints
Weights = Tensor | Sequence[Tensor | float]


class MixedOp(PackedEdges):
    """Weighted sum of an edge's candidates as one fused call (DARTS, Liu et al., ICLR 2019, Eq. 2).

    C                 channels
    stride            1 or 2
    primitives        names of the candidates, in the order of their weights
    partial_channels  k: the first C/k channels pass through the candidates, the others bypass them; the result is shuffled
                      (PC-DARTS, Xu et al., ICLR 2020, Eq. 2)
    backend           backend of ops.mixed_cell

    One Parameter, `weights`, holds all convolutions; state_dict and load_state_dict use DARTS' names,
    `_ops.CANDIDATE.op.1.weight` and so on. BatchNorm has no affine parameters, eps 1e-5, momentum 0.1.
    Raises ValueError for unknown primitives, and for a stride other than 1 or 2.
    """

    def __init__(
        self,
        C: int,
        stride: int,
        primitives: Sequence[str] = PRIMITIVES,
        partial_channels: int = 1,
        backend: str = "auto",
    ) -> None:
        if not primitives:
            raise ValueError("primitives: at least one candidate is needed")
        if unknown := [name for name in primitives if name not in NAMES]:
            raise ValueError(f"unknown primitives {', '.join(unknown)}; known are {', '.join(NAMES)}")
        _check_channels(C, partial_channels)
        graph = Graph(1, 1, (Edge(0, 0, stride, tuple(NAMES[name].code for name in primitives)),))
        super().__init__(graph, *names_of_edge(primitives, stride), C, partial_channels, backend)
        self.primitives = tuple(primitives)

    def forward(self, x: Tensor, weights: Weights) -> Tensor:
        """Map x (N, C, H, W) and weights, (K,) or K numbers, of any scale, to (N, C, H/stride, W/stride)."""
        return self.mixed([x], _row(weights, x)[None], None)


class Cell(CellModules):
    """DARTS' cell: two preprocess layers, `steps` nodes that read all previous states, the last `multiplier` concatenated.

    C_prev_prev, C_prev  channels of the two inputs
    C                    channels of a node
    reduction            edges from the inputs have stride 2
    reduction_prev       the previous cell is a reduction cell: the first input is twice as large and is reduced here
    primitives           names of every edge's candidates, in the order of their weights
    partial_channels, backend  as in MixedOp
    """

    def __init__(
        self,
        steps: int,
        multiplier: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        primitives: Sequence[str] = PRIMITIVES,
        partial_channels: int = 1,
        backend: str = "auto",
    ) -> None:
        if not 1 <= multiplier <= steps:
            raise ValueError(f"multiplier = {multiplier}: expected 1 to {steps}, the number of nodes")
        _check_channels(C, partial_channels)
        space = Space.uniform("of its own", tuple(primitives), steps)
        kind = "reduce" if reduction else "normal"
        super().__init__(space, kind, C_prev_prev, C_prev, C, reduction_prev, partial_channels, backend)
        self.reduction, self._steps, self._multiplier = reduction, steps, multiplier

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor | Sequence[Weights], weights2: Weights | None = None) -> Tensor:
        """s0, s1: outputs of the two previous cells; weights (E, K) or E rows; weights2 (E,): edge weights, as in PC-DARTS.

        Returns (N, multiplier * C, H', W') with H' W' of s1, halved in a reduction cell.
        """
        rows = weights if isinstance(weights, Tensor) else torch.stack([_row(row, s1) for row in weights])
        out = self.mixed(s0, s1, CellWeights(rows, None if weights2 is None else _row(weights2, s1)))
        return out[:, out.shape[1] // self._steps * (self._steps - self._multiplier) :]


def _check_channels(C: int, k: int) -> None:
    if C < 1 or k < 1 or C % k:
        raise ValueError(f"C = {C} channels are not divisible by partial_channels = {k}")


def _row(weights: Weights, like: Tensor) -> Tensor:
    """Stack the weights into one tensor; tensors keep their dtype and gradients."""
    if isinstance(weights, Tensor):
        return weights
    if not len(weights):
        raise ValueError("weights: an empty list")
    return torch.stack([w.reshape(()) if isinstance(w, Tensor) else like.new_tensor(w) for w in weights])
