"""Edges that a selection has decided: constant rows over the weights of any relaxation.

Notation: E edges of a cell, K candidates of its longest list.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.ops.philox import Stream
from fastdarts.protocols import Pieces
from fastdarts.search.relaxation import Kept, SoftmaxRelaxation
from fastdarts.spaces import Kind, Space
from fastdarts.supernet import CellWeights

OPEN = -1  # an edge without a decision


def decided_rows(ops: Tensor, decided: Tensor) -> Tensor:
    """Return ops (E, K) with 1 at the candidates of decided edges and 0 elsewhere in their rows.

    decided  int64 (E,): a candidate, OPEN, or K of a removed edge, whose row is 0
    """
    chosen = (torch.arange(ops.shape[1], device=ops.device) == decided[:, None]).to(ops)
    return torch.where(decided[:, None] == OPEN, ops, chosen)


def kept_of(space: Space, decided: Mapping[Kind, Tensor]) -> Kept | None:
    """Return for each edge the places of the candidates whose weight is not always 0; None: no edge is decided."""
    kept: Kept = {}
    for kind, row in decided.items():
        places = zip(row.tolist(), map(len, space.candidates(kind)), strict=True)
        kept[kind] = [tuple(range(K)) if d == OPEN else (d,) * (d < K) for d, K in places]
    return kept if any((row != OPEN).any() for row in decided.values()) else None


class FixedRows(SoftmaxRelaxation):
    """`relaxation` with decided edges: one of their candidates has weight 1, a removed edge adds nothing.

    partial  channels bypass the candidates: a removed edge needs weight 0 as a whole
    decided  int64 (E,) by kind of cell: a candidate, OPEN, or K of a removed edge. Filled in place

    alpha of decided edges gets a gradient of exactly 0. Schedules stay where they were at the search's end.
    """

    def __init__(self, relaxation: SoftmaxRelaxation, *, partial: bool) -> None:
        self.relaxation, self.partial, self.space = relaxation, partial, relaxation.space
        self.alpha, self.beta, self.padding = relaxation.alpha, relaxation.beta, relaxation.padding
        self.decided = {kind: torch.full((len(a),), OPEN, device=a.device) for kind, a in self.alpha.items()}

    def parameters(self) -> list[Tensor]:
        return self.relaxation.parameters()

    def weights(self, stream: Stream = Stream.EVAL) -> dict[Kind, CellWeights]:
        return self.fixed(self.relaxation.weights(stream))

    def training_weights(self, bilevel: Any, step: Tensor, train: Batch) -> Pieces[dict[Kind, CellWeights]]:
        weights = yield from self.relaxation.training_weights(bilevel, step, train)
        return self.fixed(weights)

    def fixed(self, weights: dict[Kind, CellWeights]) -> dict[Kind, CellWeights]:
        return {kind: self._fixed(w, self.decided[kind]) for kind, w in weights.items()}

    def _fixed(self, weights: CellWeights, decided: Tensor) -> CellWeights:
        ops, edges = weights
        E, K = ops.shape
        if edges is None and self.partial:
            edges = ops.new_ones(E)
        edges = None if edges is None else edges.masked_fill(decided == K, 0)
        return CellWeights(decided_rows(ops, decided), edges)

    def kept(self) -> Kept | None:
        return kept_of(self.space, self.decided)

    def penalty(self) -> Tensor | None:
        return self.relaxation.penalty()

    def epoch_begins(self, epoch: int, epochs: int) -> None:
        self.relaxation.epoch_begins(1, 1)

    def alpha_stepped(self) -> None:
        self.relaxation.alpha_stepped()

    def epoch_ended(self, epoch: int) -> None:
        self.relaxation.epoch_ended(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the relaxation's state, and the decisions by kind of cell."""
        return self.relaxation.state_dict() | {"fixed": {kind: d.clone() for kind, d in self.decided.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.relaxation.load_state_dict(state)
        for kind, decided in self.decided.items():
            decided.copy_(state["fixed"][kind])
