"""NAS-Bench-201's cell as DARTS mixes it and as GDAS samples it, and GDAS on DARTS' cells.

Notation: C channels, E edges (6), K candidates (5).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.darts import Cell, MixedOp, Network
from tests.zoo.driver import CLASSES, Entry
from tests.zoo.operations import Identity, ReLUConvBN, Zero, convolution, pool
from tests.zoo.probes import EVAL

NB201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def candidates(C: int) -> list[nn.Module]:
    """The five in NB201's order; BatchNorm by batch statistics only, no BatchNorm after the pool."""
    convolutions = [ReLUConvBN(C, C, k, track=False) for k in (1, 3)]
    return [Zero(1), Identity(), *convolutions, pool("avg_pool_3x3", 1)]


class MixedOps(nn.Module):
    def __init__(self, C: int) -> None:
        super().__init__()
        self.ops = nn.ModuleList(candidates(C))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self.ops, strict=True))


class NB201Cell(nn.Module):
    """Node i sums its edges from all earlier nodes; the last node is the output. `edges` by name: `i<-j`."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict({f"{i}<-{j}": self.make_edge(C) for i in range(1, 4) for j in range(i)})

    def make_edge(self, C: int) -> nn.Module:
        return MixedOps(C)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        nodes, rows = [x], iter(weights)
        for i in range(1, 4):
            nodes.append(sum(self.edges[f"{i}<-{j}"](nodes[j], next(rows)) for j in range(i)))
        return nodes[-1]


class BareCell(NB201Cell):
    """Edges are lists of candidates with nothing around them; only the sampled candidate runs.

    The other weights are added as scalars, so that each has a gradient: the sum of the output's.
    """

    def make_edge(self, C: int) -> nn.Module:
        return nn.ModuleList(candidates(C))

    def forward(self, x: Tensor, hardwts: Tensor, index: Sequence[int]) -> Tensor:
        nodes, rows = [x], iter(zip(hardwts, index, strict=True))
        for i in range(1, 4):
            nodes.append(sum(sampled(self.edges[f"{i}<-{j}"], nodes[j], *next(rows)) for j in range(i)))
        return nodes[-1]


def sampled(ops: nn.ModuleList, x: Tensor, weights: Tensor, index: int) -> Tensor:
    """w_i * op_i(x) + the sum of the other w_j."""
    return sum(w * op(x) if k == index else w for k, (w, op) in enumerate(zip(weights, ops, strict=True)))


def gumbel_hard(alpha: Tensor, tau: float = 10.0) -> tuple[Tensor, list[int]]:
    """One-hot samples whose gradient is the relaxed sample's, and the sampled candidates."""
    gumbels = -torch.empty_like(alpha).exponential_().log()
    probs = F.softmax((alpha.log_softmax(dim=-1) + gumbels) / tau, dim=-1)
    index = probs.argmax(dim=-1)
    hard = F.one_hot(index, alpha.shape[1]).to(alpha.dtype)
    return hard - probs.detach() + probs, index.tolist()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first of stride 2, beside a pooled 1x1 convolution."""

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.conv_a = nn.Sequential(nn.ReLU(), convolution(C_in, C_out, 3, 2, 1), nn.BatchNorm2d(C_out))
        self.conv_b = nn.Sequential(nn.ReLU(), convolution(C_out, C_out, 3, 1, 1), nn.BatchNorm2d(C_out))
        self.downsample = nn.Sequential(nn.AvgPool2d(2, 2), convolution(C_in, C_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(x) + self.conv_b(self.conv_a(x))


class NB201Network(nn.Module):
    """Stages of one cell here, with residual blocks between them; one alpha (E, K) for all cells, a Parameter."""

    Cell: type[NB201Cell] = NB201Cell

    def __init__(self, C: int = 4, stages: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(3, C, 3, 1, 1), nn.BatchNorm2d(C))
        self.cells = nn.ModuleList()
        for stage in range(stages):
            if stage:
                self.cells.append(ResidualBlock(C, 2 * C))
                C *= 2
            self.cells.append(self.Cell(C))
        self.lastact = nn.Sequential(nn.BatchNorm2d(C), nn.ReLU(inplace=True))
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C, CLASSES)
        self.arch_params = nn.Parameter(1e-3 * torch.randn(6, len(NB201)))

    def arch_parameters(self) -> list[Tensor]:
        return [self.arch_params]

    def cell_arguments(self) -> tuple[Any, ...]:
        return (F.softmax(self.arch_params, dim=-1),)

    def forward(self, input: Tensor) -> Tensor:
        arguments = self.cell_arguments()
        x = self.stem(input)
        for cell in self.cells:
            x = cell(x, *arguments) if isinstance(cell, NB201Cell) else cell(x)
        return self.classifier(self.global_pooling(self.lastact(x)).flatten(1))


class NB201Gdas(NB201Network):
    Cell = BareCell

    def cell_arguments(self) -> tuple[Any, ...]:
        return gumbel_hard(self.arch_params)


class GdasMixedOp(MixedOp):
    """DARTS' candidates; the forward is told which one runs."""

    def forward(self, x: Tensor, weights: Tensor, index: int) -> Tensor:
        return sampled(self._ops, x, weights, index)


class ArgmaxMixedOp(MixedOp):
    """A forward of the customary signature that is not the customary sum: it runs the heaviest candidate only."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sampled(self._ops, x, weights, int(weights.argmax()))


class GdasCell(Cell):
    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, index: Sequence[int]) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(self._steps):
            s = sum(self._ops[j](h, weights[j], index[j]) for j, h in enumerate(states, start=offset))
            offset += len(states)
            states.append(s)
        return torch.cat(states[-self._multiplier :], dim=1)


class Gdas(Network):
    def make_cell(self, *arguments: Any) -> nn.Module:
        return GdasCell(self._steps, *arguments, mixed=GdasMixedOp)

    def cell_arguments(self, cell: nn.Module) -> tuple[Any, ...]:
        return gumbel_hard(self.alphas(cell))


class GdasArgmax(Network):
    def make_cell(self, *arguments: Any) -> nn.Module:
        return Cell(self._steps, *arguments, mixed=ArgmaxMixedOp)

    def cell_arguments(self, cell: nn.Module) -> tuple[Any, ...]:
        return gumbel_hard(self.alphas(cell))[:1]


ENTRIES = [
    Entry("nasbench201", NB201Network, "op", "a cell without preprocess layers, one input and other nodes", (EVAL,)),
    Entry("nasbench201_gdas", NB201Gdas, "left alone", "edges are bare lists: no module has the mixed forward"),
    Entry("gdas", Gdas, "left alone", "the mixed op's forward asks for an index and runs one candidate"),
    Entry("gdas_argmax", GdasArgmax, "left alone", "the mixed op's forward is not the weighted sum"),
]
