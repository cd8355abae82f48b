"""How alpha becomes the weights of a cell: DARTS' softmax, PC-DARTS' edge normalisation.

Notation: E edges of a cell, K candidates of its longest list.
"""

import torch
from torch import Tensor

from fastdarts.ops.philox import Stream
from fastdarts.spaces import Kind, Space
from fastdarts.supernet import CellWeights


class SoftmaxRelaxation:
    """alpha (E, K) and, with edge normalisation, beta (E,) for each kind of cell, both starting at 1e-3 * N(0, 1).

    The weights are softmax(alpha) over an edge's candidates (DARTS, Eq. 2) and softmax(beta) over a node's incoming
    edges (PC-DARTS, Eq. 3). Where an edge has fewer than K candidates its row is padded, and the padding weighs 0.
    """

    def __init__(
        self,
        space: Space,
        *,
        edge_normalization: bool,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.space = space
        E, generator = space.num_edges, torch.Generator().manual_seed(seed)

        def small(*shape: int) -> Tensor:
            start = 1e-3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
            return start.to(device, dtype).requires_grad_()

        self.padding: dict[Kind, Tensor] = {}
        self.alpha: dict[Kind, Tensor] = {}
        for kind in space.kinds:
            lengths = torch.tensor([len(names) for names in space.candidates(kind)])
            K = int(lengths.max())
            self.padding[kind] = (torch.arange(K) >= lengths[:, None]).to(device)
            self.alpha[kind] = small(E, K)
        self.beta: dict[Kind, Tensor] = {kind: small(E) for kind in space.kinds} if edge_normalization else {}

    def parameters(self) -> list[Tensor]:
        """The architecture parameters: alpha of the normal and the reduce cells, then beta of both."""
        return [*self.alpha.values(), *self.beta.values()]

    def weights(self, stream: Stream = Stream.EVAL) -> dict[Kind, CellWeights]:
        """How the cells mix now; differentiable in `parameters()`.

        stream  for whose images. A relaxation that samples or perturbs does so for TRAIN and VAL, by torch's generators; what
                it is evaluated, judged and read out with is EVAL's. This one mixes alike for all
        """
        return {kind: CellWeights(self._ops(kind), self._edges(kind)) for kind in self.space.kinds}

    def penalty(self) -> Tensor | None:
        """A scalar that alpha's loss has besides the objective's, differentiable in `parameters()`; None: none."""
        return None

    def epoch_ended(self, epoch: int) -> None:
        """Called after the last step of each epoch (from 1) in which alpha moves: what is decided once an epoch.

        It may change tensors in place that `state_dict` has, and those alone: captured steps go on with them. On all ranks
        alike.
        """

    def _ops(self, kind: Kind) -> Tensor:
        return self.alpha[kind].masked_fill(self.padding[kind], -torch.inf).softmax(-1)

    def _edges(self, kind: Kind) -> Tensor | None:
        if not self.beta:
            return None
        nodes = self.beta[kind].split([len(self.space.edges_of_node(i)) for i in range(self.space.nodes)])
        return torch.cat([beta.softmax(0) for beta in nodes])

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Plain tensors by kind of cell."""
        return {
            "alpha": {kind: a.detach().clone() for kind, a in self.alpha.items()},
            "beta": {kind: b.detach().clone() for kind, b in self.beta.items()},
        }

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Copies the values in place, so that optimizers keep their parameters. Raises ValueError on another space's."""
        for name, mine in (("alpha", self.alpha), ("beta", self.beta)):
            shapes = {kind: tuple(t.shape) for kind, t in mine.items()}
            given = {kind: tuple(t.shape) for kind, t in state[name].items()}
            if shapes != given:
                raise ValueError(f"{name} of another space: shapes {given}, expected {shapes}")
            with torch.no_grad():
                for kind, tensor in mine.items():
                    tensor.copy_(state[name][kind])
