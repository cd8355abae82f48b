"""Relaxations from alpha to the weights of a cell: DARTS' softmax, PC-DARTS' edge normalisation.

Notation: E edges of a cell, K candidates of its longest list.
"""

from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.ops.philox import Stream
from fastdarts.protocols import Pieces
from fastdarts.settings import SearchSettings
from fastdarts.spaces import Kind, Space
from fastdarts.supernet import CellWeights

if TYPE_CHECKING:
    from fastdarts.search.bilevel import Bilevel


Kept = dict[Kind, list[tuple[int, ...]]]  # places of candidates by kind of cell and edge


class Options(TypedDict, total=False):
    """What every relaxation takes.

    edge_normalization  learn weights of edges too
    seed                of the initial values
    """

    edge_normalization: bool
    seed: int
    device: torch.device | str
    dtype: torch.dtype


class SoftmaxRelaxation:
    """alpha (E, K) and, with edge normalisation, beta (E,) for each kind of cell, both initialised to 1e-3 * N(0, 1).

    The weights are softmax(alpha) over an edge's candidates (DARTS, Eq. 2) and softmax(beta) over a node's incoming
    edges (PC-DARTS, Eq. 3). Rows of edges with fewer than K candidates are padded; the padding has weight 0.
    """

    def __init__(
        self,
        space: Space,
        *,
        edge_normalization: bool = False,
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

    @classmethod
    def of(cls, space: Space, settings: SearchSettings, **options: Unpack[Options]) -> Self:
        """Construct from the settings."""
        options["edge_normalization"] = settings.edge_normalization
        return cls(space, **options, **cls.own_options(space, settings))

    @classmethod
    def own_options(cls, space: Space, settings: SearchSettings) -> dict[str, Any]:
        """Return further arguments of the constructor: the hook for a relaxation that has some of its own."""
        return {}

    @classmethod
    def check(cls, space: Space, settings: SearchSettings) -> None:
        """Raise ConfigError if the relaxation cannot search this space with these settings."""

    @classmethod
    def plan(cls, space: Space, settings: SearchSettings) -> list[str]:
        """Return lines to print with a run's plan."""
        return []

    def parameters(self) -> list[Tensor]:
        """Return the architecture parameters: alpha of the normal and the reduce cells, then beta of both."""
        return [*self.alpha.values(), *self.beta.values()]

    def weights(self, stream: Stream = Stream.EVAL) -> dict[Kind, CellWeights]:
        """Return the current weights of each kind of cell; differentiable in `parameters()`.

        stream  the images' stream. A relaxation that samples or perturbs does so for TRAIN and VAL, from torch's generators;
                evaluation, early stopping and the genotype use EVAL. SoftmaxRelaxation ignores `stream`
        """
        return {kind: CellWeights(self._ops(kind), self._edges(kind)) for kind in self.space.kinds}

    def training_weights(self, bilevel: "Bilevel", step: Tensor, train: Batch) -> Pieces[dict[Kind, CellWeights]]:
        """Return the weights of the weights' update, constants: the hook for weights that depend on network, step or batch.

        In pieces, as Bilevel's updates are: yields each tensor to average over the ranks.
        """
        yield from ()  # nothing to average
        with torch.no_grad():
            return self.weights(Stream.TRAIN)

    def fixed(self, weights: dict[Kind, CellWeights]) -> dict[Kind, CellWeights]:
        """Return the weights with the rows of decided edges (FixedRows); here none is."""
        return weights

    def kept(self) -> Kept | None:
        """Return the places of the candidates that can have a weight other than 0, if some cannot: no others are computed."""
        return None

    def penalty(self) -> Tensor | None:
        """Return a scalar to add to alpha's loss, differentiable in `parameters()`, or None."""
        return None

    def epoch_begins(self, epoch: int, epochs: int) -> None:
        """Run before the first step of each epoch, and again if it is resumed: the hook for schedules.

        epoch, epochs  number of finished epochs of the stage, and of all its epochs

        It may change tensors in place, which captured steps keep reading.
        """

    def alpha_stepped(self) -> None:
        """Run after each update of alpha, on the device alone: the hook for numbers that must keep their values."""

    def epoch_ended(self, epoch: int) -> None:
        """Run after the last step of each epoch (from 1) that updates alpha: the hook for decisions made once per epoch.

        It may change tensors of `state_dict` in place, and no others: captured steps keep reading them. All ranks must change
        them alike.
        """

    def _ops(self, kind: Kind) -> Tensor:
        return self.alpha[kind].masked_fill(self.padding[kind], -torch.inf).softmax(-1)

    def _edges(self, kind: Kind) -> Tensor | None:
        if not self.beta:
            return None
        nodes = self.beta[kind].split([len(self.space.edges_of_node(i)) for i in range(self.space.nodes)])
        return torch.cat([beta.softmax(0) for beta in nodes])

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return plain tensors by kind of cell."""
        return {
            "alpha": {kind: a.detach().clone() for kind, a in self.alpha.items()},
            "beta": {kind: b.detach().clone() for kind, b in self.beta.items()},
        }

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Copy the values in place, which keeps the optimizers' parameters. Raises ValueError for another space's state."""
        for name, own in (("alpha", self.alpha), ("beta", self.beta)):
            shapes = {kind: tuple(t.shape) for kind, t in own.items()}
            saved = {kind: tuple(t.shape) for kind, t in state[name].items()}
            if shapes != saved:
                raise ValueError(f"{name} of another space: shapes {saved}, expected {shapes}")
            with torch.no_grad():
                for kind, tensor in own.items():
                    tensor.copy_(state[name][kind])
