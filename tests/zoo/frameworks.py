"""Search frameworks' forms of DARTS: NASLib, NNI, archai, pt.darts.

Notation: C channels of a node, E edges, K candidates.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.darts import Cell, MixedOp, Network
from tests.zoo.driver import Entry
from tests.zoo.operations import (
    NESTED_OPS,
    OPS,
    PRIMITIVES,
    SEQUENTIAL_OPS,
    FactorizedReduce,
    PaddedFactorizedReduce,
    ReLUConvBN,
)

NONE_LAST = (*PRIMITIVES[1:], "none")


class Primitive(nn.Module):
    """NASLib's candidates take the edge's data as well, and ignore it."""

    def __init__(self, name: str, C: int, stride: int) -> None:
        super().__init__()
        self.op = OPS[name](C, stride)

    def forward(self, x: Tensor, edge_data: object) -> Tensor:
        return self.op(x)


class NaslibMixedOp(nn.Module):
    """The weights come out of the edge's data; the candidates are children named `primitive-k`, and a plain list beside."""

    def __init__(self, C: int, stride: int) -> None:
        super().__init__()
        for k, name in enumerate(PRIMITIVES):
            self.add_module(f"primitive-{k}", Primitive(name, C, stride))

    @property
    def primitives(self) -> list[nn.Module]:
        return list(self.children())

    def process_weights(self, weights: Tensor) -> Tensor:
        return torch.softmax(weights, dim=-1)

    def forward(self, x: Tensor, edge_data: SimpleNamespace) -> Tensor:
        weights = self.process_weights(edge_data.alpha)
        return sum(w * op(x, None) for w, op in zip(weights, self.primitives, strict=True))


class Naslib(Network):
    """Each edge's alpha is a Parameter that the edges of all cells of a kind share through their data."""

    def __init__(self, C: int = 4, layers: int = 3, steps: int = 2) -> None:
        super().__init__(C, layers, steps)
        self.alphas_normal, self.alphas_reduce = (
            nn.ParameterList(row.detach().clone() for row in alphas) for alphas in self._arch_parameters
        )
        self._arch_parameters = [*self.alphas_normal, *self.alphas_reduce]

    def make_cell(self, *arguments: Any) -> nn.Module:
        return Cell(self._steps, *arguments, mixed=NaslibMixedOp)

    def cell_arguments(self, cell: nn.Module) -> tuple[Any, ...]:
        return ([SimpleNamespace(alpha=alpha) for alpha in self.alphas(cell)],)


class OwnAlphaCell(nn.Module):
    """A cell whose forward takes no weights: its mixtures own them."""

    def __init__(
        self,
        mixtures: Sequence[Sequence[nn.Module]],
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        reduce: type[nn.Module],
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.preprocess0 = reduce(C_prev_prev, C) if reduction_prev else ReLUConvBN(C_prev_prev, C)
        self.preprocess1 = ReLUConvBN(C_prev, C)
        self.dag = nn.ModuleList(nn.ModuleList(edges) for edges in mixtures)

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for edges in self.dag:
            states.append(sum(edge(s) for edge, s in zip(edges, states, strict=True)))
        return torch.cat(states[2:], dim=1)


class OwnAlpha(Network):
    """`mixture(C, stride, alpha)`: made with the alpha (K,) of its place, one Parameter for all cells of a kind."""

    mixture: type[nn.Module]
    reduce: type[nn.Module]

    def __init__(self, C: int = 4, layers: int = 3, steps: int = 2) -> None:
        super().__init__(C, layers, steps)
        self._arch_parameters = [alpha for alphas in self.own for alpha in alphas]
        del self.alphas_normal, self.alphas_reduce

    def make_cells(self, *arguments: Any) -> None:
        self.own = [[nn.Parameter(1e-3 * torch.randn(self.candidates)) for _ in range(self.edges)] for _ in range(2)]
        super().make_cells(*arguments)

    def make_cell(self, C_prev_prev: int, C_prev: int, C: int, reduction: bool, reduction_prev: bool) -> nn.Module:
        alphas = iter(self.own[reduction])
        mixtures = [
            [self.mixture(C, 2 if reduction and j < 2 else 1, next(alphas)) for j in range(2 + i)] for i in range(self._steps)
        ]
        return OwnAlphaCell(mixtures, C_prev_prev, C_prev, C, reduction, reduction_prev, self.reduce)

    def cell_arguments(self, cell: nn.Module) -> tuple[Any, ...]:
        return ()


class LayerChoice(nn.Module):
    """NNI: candidates by name, their outputs stacked."""

    def __init__(self, C: int, stride: int, alpha: nn.Parameter) -> None:
        super().__init__()
        self.op_choices = nn.ModuleDict({name: SEQUENTIAL_OPS[name](C, stride) for name in PRIMITIVES[1:]})
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([op(x) for op in self.op_choices.values()])
        return torch.sum(outputs * F.softmax(self.alpha, -1).view(-1, 1, 1, 1, 1), 0)


class Nni(OwnAlpha):
    mixture, reduce, candidates = LayerChoice, PaddedFactorizedReduce, 7


class ArchaiMixedOp(MixedOp):
    """none last; the mixture holds its alpha and takes x alone."""

    def __init__(self, C: int, stride: int, alpha: nn.Parameter) -> None:
        super().__init__(C, stride, NONE_LAST)
        self._alphas = nn.ParameterList([alpha])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, F.softmax(self._alphas[0], dim=0))


class Archai(OwnAlpha):
    mixture, reduce, candidates = ArchaiMixedOp, FactorizedReduce, 8


class PtMixedOp(nn.Module):
    def __init__(self, C: int, stride: int) -> None:
        super().__init__()
        self._ops = nn.ModuleList(NESTED_OPS[primitive](C, stride) for primitive in NONE_LAST)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))


class PtCell(OwnAlphaCell):
    """Weights are a list with a tensor (inputs, K) for each node, mixed ops a list for each node."""

    def forward(self, s0: Tensor, s1: Tensor, w_dag: Sequence[Tensor]) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for edges, weights in zip(self.dag, w_dag, strict=True):
            states.append(sum(edge(s, w) for edge, s, w in zip(edges, states, weights, strict=True)))
        return torch.cat(states[2:], dim=1)


class PtDarts(Network):
    """alphas_normal, alphas_reduce: ParameterLists, one Parameter (inputs, K) for each node."""

    def __init__(self, C: int = 4, layers: int = 3, steps: int = 2) -> None:
        super().__init__(C, layers, steps)
        inputs = [2 + i for i in range(steps)]
        self.alphas_normal, self.alphas_reduce = (
            nn.ParameterList(node.detach().clone() for node in alphas.split(inputs)) for alphas in self._arch_parameters
        )
        self._arch_parameters = [*self.alphas_normal, *self.alphas_reduce]

    def make_cell(self, C_prev_prev: int, C_prev: int, C: int, reduction: bool, reduction_prev: bool) -> nn.Module:
        mixtures = [[PtMixedOp(C, 2 if reduction and j < 2 else 1) for j in range(2 + i)] for i in range(self._steps)]
        return PtCell(mixtures, C_prev_prev, C_prev, C, reduction, reduction_prev, FactorizedReduce)

    def cell_arguments(self, cell: nn.Module) -> tuple[Any, ...]:
        return ([F.softmax(alpha, dim=-1) for alpha in self.alphas(cell)],)


ENTRIES = [
    Entry("naslib", Naslib, "left alone", "the mixed op takes the edge's data, not weights"),
    Entry("nni", Nni, "left alone", "the mixture owns its alpha and takes x alone"),
    Entry("archai", Archai, "left alone", "the mixture owns its alpha and takes x alone"),
    Entry("pt_darts", PtDarts, "op", "the cell takes a list of weights for each node, and its mixed ops are lists of lists"),
]
