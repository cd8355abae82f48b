"""A mixed edge and a cell of mixed edges, in plain PyTorch: the definition that every fused backend is held to.

Letters: N images, C channels of a node, k the divisor of partial channels, H W pixels, s stride, E edges, K candidates.
"""

from collections.abc import Iterable
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdarts.spaces import Kind, Space
from fastdarts.supernet.candidates import BUILD, FactorizedReduce, ReLUConvBN


class CellWeights(NamedTuple):
    """How a kind of cell mixes: any real numbers, not necessarily on the simplex.

    ops    (E, K): the weight of candidate k on edge e; columns past an edge's own list are ignored
    edges  (E,) or None: the weight of edge e (PC-DARTS' edge normalisation, beta); None is 1
    """

    ops: Tensor
    edges: Tensor | None = None


def channel_shuffle(x: Tensor, k: int) -> Tensor:
    """Interleave k groups of channels: output channel c is input channel (c mod k) * (C/k) + c div k. x: (N, C, H, W)."""
    N, C, H, W = x.shape
    return x.reshape(N, k, C // k, H, W).transpose(1, 2).reshape(N, C, H, W)


class MixedOp(nn.Module):
    """One edge: sum over its candidates of weight * candidate(x), left to right.

    With partial channels (PC-DARTS, Xu et al., ICLR 2020) only C/k channels pass through the candidates; the others
    bypass them (2x2 max-pooled where the edge strides). As in its released code the first C/k channels are taken, and
    the concatenation [processed, bypass] is shuffled over k groups; or, as in its Eq. 2, any C/k channels are handed
    in, and each channel keeps its place.
    """

    def __init__(self, C: int, stride: int, candidates: tuple[str, ...], partial_channels: int = 1) -> None:
        super().__init__()
        self.k = partial_channels
        self._ops = nn.ModuleList(BUILD[name](C // self.k, stride) for name in candidates)
        self.bypass = nn.MaxPool2d(2, 2) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor | None = None) -> Tensor:
        """x (N, C, H, W), weights (K,), chosen int64 (C/k,) or None (the first C/k) -> (N, C, H/s, W/s)."""
        if self.k == 1:
            return self._mix(x, weights)
        if chosen is not None:
            return self.bypass(x).index_copy(1, chosen, self._mix(x.index_select(1, chosen), weights))
        C = x.shape[1]
        processed = self._mix(x[:, : C // self.k], weights)
        return channel_shuffle(torch.cat([processed, self.bypass(x[:, C // self.k :])], dim=1), self.k)

    def _mix(self, x: Tensor, weights: Tensor) -> Tensor:
        if len(weights) < len(self._ops):
            raise ValueError(f"{len(weights)} weights for {len(self._ops)} candidates")
        # an edge's row may be padded to the longest list of the cell
        return total(w * op(x) for w, op in zip(weights, self._ops, strict=False))


class Cell(nn.Module):
    """Two preprocess layers and `nodes` nodes; node i sums its edges from all earlier states; the nodes are concatenated."""

    def __init__(
        self,
        space: Space,
        kind: Kind,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction_prev: bool,
        partial_channels: int = 1,
    ) -> None:
        super().__init__()
        self.space, self.kind = space, kind
        self.preprocess0 = (FactorizedReduce if reduction_prev else ReLUConvBN)(C_prev_prev, C)
        self.preprocess1 = ReLUConvBN(C_prev, C)
        self._ops = nn.ModuleList()
        for node in range(space.nodes):
            for state, edge in enumerate(space.edges_of_node(node)):
                stride = 2 if kind == "reduce" and state < 2 else 1
                self._ops.append(MixedOp(C, stride, space.candidates(kind)[edge], partial_channels))

    def forward(self, s0: Tensor, s1: Tensor, weights: CellWeights, channels: Tensor | None = None) -> Tensor:
        """s0, s1: outputs of the two previous cells; channels int64 (E, C/k) or None (the first C/k on each edge).

        Returns (N, nodes * C, H', W'), where H' W' are those of s1, halved in a reduction cell.
        """
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for node in range(self.space.nodes):
            edges = self.space.edges_of_node(node)
            states.append(total(self._edge(e, x, weights, channels) for e, x in zip(edges, states, strict=True)))
        return torch.cat(states[2:], dim=1)

    def _edge(self, edge: int, x: Tensor, weights: CellWeights, channels: Tensor | None) -> Tensor:
        mixed = self._ops[edge](x, weights.ops[edge], None if channels is None else channels[edge])
        return mixed if weights.edges is None else weights.edges[edge] * mixed


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum from left to right, without the 0 that the built-in sum starts from (it would cost a pass)."""
    return reduce(add, terms)
