"""DrNAS (Chen et al., ICLR 2021): mixing weights drawn from a Dirichlet distribution whose concentration is learnt.

Notation: E edges of a cell, K candidates of its longest list.
"""

from collections.abc import Iterator
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence
from torch.nn.functional import elu

from fastdarts.ops.philox import Stream
from fastdarts.search.relaxation import Options, SoftmaxRelaxation
from fastdarts.settings import SearchSettings
from fastdarts.spaces import Kind, Space
from fastdarts.supernet import CellWeights


class DirichletRelaxation(SoftmaxRelaxation):
    """theta ~ Dir(elu(alpha) + 1) for each edge, drawn anew for each forward pass of an update, with torch's pathwise gradient.

    Both updates sample, from torch's generators: each rank for itself. Evaluation and the genotype read softmax(alpha), as the
    released genotype does (its evaluation samples). alpha's weight decay is the paper's distance to the anchor, Dir(1).

    kl  factor of KL(Dir(elu(alpha) + 1) || Dir(1)), summed over edges and kinds, in alpha's loss; 0: none
    """

    def __init__(self, space: Space, *, kl: float = 0.0, **options: Unpack[Options]) -> None:
        super().__init__(space, **options)
        self.kl = kl
        self.rows: dict[Kind, list[tuple[int, Tensor]]] = {}  # edges by the length of their lists
        for kind in space.kinds:
            lengths = [len(names) for names in space.candidates(kind)]
            groups = {n: [e for e, length in enumerate(lengths) if length == n] for n in sorted(set(lengths))}
            self.rows[kind] = [(n, torch.tensor(edges, device=self.alpha[kind].device)) for n, edges in groups.items()]

    @classmethod
    def own_options(cls, space: Space, settings: SearchSettings) -> dict[str, Any]:
        return {"kl": settings.dirichlet_kl}

    def weights(self, stream: Stream = Stream.EVAL) -> dict[Kind, CellWeights]:
        if stream is Stream.EVAL:
            return super().weights(stream)
        return {kind: CellWeights(self._sample(kind), self._edges(kind)) for kind in self.alpha}

    def _laws(self, kind: Kind) -> Iterator[tuple[Tensor, Dirichlet]]:
        """Yield edges of equally long lists, and their distribution: without padding, which would only add noise."""
        for length, edges in self.rows[kind]:
            concentration = elu(self.alpha[kind].index_select(0, edges)[:, :length]) + 1
            yield edges, Dirichlet(concentration, validate_args=False)  # whose check would wait for the device

    def _sample(self, kind: Kind) -> Tensor:
        ops = torch.zeros_like(self.alpha[kind])
        for edges, law in self._laws(kind):
            theta = law.rsample()
            ops = ops.index_copy(0, edges, torch.nn.functional.pad(theta, (0, ops.shape[1] - theta.shape[1])))
        return ops

    def penalty(self) -> Tensor | None:
        if not self.kl:
            return None
        terms = [
            kl_divergence(law, Dirichlet(torch.ones_like(law.concentration), validate_args=False)).sum()
            for kind in self.alpha
            for _, law in self._laws(kind)
        ]
        return self.kl * torch.stack(terms).sum()
