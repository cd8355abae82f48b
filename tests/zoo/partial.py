"""Codebases with partial channels: PC-DARTS (once and twice evaluated, ImageNet's stem), SDARTS' variant of it, DrNAS.

Notation: C channels of a node, k the divisor of partial channels, E edges, K candidates.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.darts import Cell, Network, Sdarts, random_alpha
from tests.zoo.driver import Entry, Event
from tests.zoo.operations import OPS, POOL_BN, PRIMITIVES, convolution
from tests.zoo.probes import EVAL


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    N, C, H, W = x.shape
    return x.view(N, groups, C // groups, H, W).transpose(1, 2).contiguous().view(N, C, H, W)


class PartialMixedOp(nn.Module):
    """The first C/k channels are processed, the others bypass."""

    def __init__(self, C: int, stride: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.mp = nn.MaxPool2d(2, 2)
        self._ops = nn.ModuleList(OPS[primitive](C // k, stride) for primitive in PRIMITIVES)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        C = x.shape[1]
        processed, bypass = x[:, : C // self.k], x[:, C // self.k :]
        mixed = sum(w * op(processed) for w, op in zip(weights, self._ops, strict=True))
        if mixed.shape[2] != x.shape[2]:
            bypass = self.mp(bypass)
        return channel_shuffle(torch.cat([mixed, bypass], dim=1), self.k)


class PartialCell(Cell):
    """Edge normalisation: beta multiplies a mixed op's whole shuffled output.

    twice: the released ImageNet cell runs each mixed op a first time only to ask on which device its output lies, so that
    the running statistics of every BatchNorm move twice in a forward.
    """

    def __init__(self, *arguments: Any, k: int, twice: bool = False) -> None:
        super().__init__(*arguments, mixed=partial(PartialMixedOp, k=k))
        self.twice = twice

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, weights2: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(self._steps):
            s = 0
            for j, h in enumerate(states, start=offset):
                beta = weights2[j].to(self._ops[j](h, weights[j]).device) if self.twice else weights2[j]
                s = s + beta * self._ops[j](h, weights[j])
            offset += len(states)
            states.append(s)
        return torch.cat(states[-self._multiplier :], dim=1)


class PcDarts(Network):
    """betas_normal, betas_reduce: plain tensors (E,), softmax inside each node's slice."""

    k, twice = 4, False

    def __init__(self, C: int = 8, layers: int = 4, steps: int = 2) -> None:
        super().__init__(C, layers, steps)
        self.betas_normal, self.betas_reduce = ((1e-3 * torch.randn(self.edges)).requires_grad_() for _ in range(2))
        self._arch_parameters += [self.betas_normal, self.betas_reduce]

    def make_cell(self, *arguments: Any) -> nn.Module:
        return PartialCell(self._steps, *arguments, k=self.k, twice=self.twice)

    def cell_arguments(self, cell: nn.Module) -> tuple[Any, ...]:
        betas = self.betas_reduce if cell.reduction else self.betas_normal
        nodes = betas.split([2 + i for i in range(self._steps)])
        return (*super().cell_arguments(cell), torch.cat([F.softmax(node, dim=-1) for node in nodes]))


class UnshuffledMixedOp(PartialMixedOp):
    """PC-DARTS' variant of random channels as released: it draws a permutation, does not use it, and does not shuffle."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        torch.randperm(x.shape[1])
        processed, bypass = x.split([x.shape[1] // self.k, x.shape[1] - x.shape[1] // self.k], dim=1)
        mixed = sum(w * op(processed) for w, op in zip(weights, self._ops, strict=True))
        return torch.cat([mixed, bypass if mixed.shape[2] == x.shape[2] else self.mp(bypass)], dim=1)


class PcDartsRandom(PcDarts):
    def make_cell(self, *arguments: Any) -> nn.Module:
        cell = PartialCell(self._steps, *arguments, k=self.k)
        for op in cell._ops:
            op.__class__ = UnshuffledMixedOp
        return cell


class PcDartsImageNet(PcDarts):
    """Two stems that together shrink the image eight times; the first cell reads both, so it counts as after a reduction."""

    k, twice = 2, True

    def __init__(self, C: int = 4, layers: int = 4, steps: int = 2) -> None:
        super().__init__(C, layers, steps)

    def make_stem(self, C: int) -> None:
        first, last = convolution(3, C // 2, 3, 2, 1), convolution(C // 2, C, 3, 2, 1)
        self.stem0 = nn.Sequential(first, nn.BatchNorm2d(C // 2), nn.ReLU(inplace=True), last, nn.BatchNorm2d(C))
        self.stem1 = nn.Sequential(nn.ReLU(inplace=True), convolution(C, C, 3, 2, 1), nn.BatchNorm2d(C))

    def make_cells(self, C: int, layers: int, reduction_prev: bool = True) -> None:
        super().make_cells(C, layers, reduction_prev)

    def stem_states(self, input: Tensor) -> tuple[Tensor, Tensor]:
        s0 = self.stem0(input)
        return s0, self.stem1(s0)


class SdartsPc(Sdarts):
    """Partial channels, and no beta."""

    def make_cell(self, *arguments: Any) -> nn.Module:
        return Cell(self._steps, *arguments, mixed=partial(PartialMixedOp, k=2))


class DrnasMixedOp(nn.Module):
    """A candidate of weight zero is not run; `wider(k)` lets more channels through, with more weights."""

    def __init__(self, C: int, stride: int, k: int) -> None:
        super().__init__()
        self.C, self.k = C, k
        self.mp = nn.MaxPool2d(2, 2)
        self._ops = nn.ModuleList((OPS | POOL_BN)[primitive](C // k, stride) for primitive in PRIMITIVES[1:])

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        C = x.shape[1] // self.k
        mixed = sum(w * op(x[:, :C]) for w, op in zip(weights, self._ops, strict=True) if w != 0)
        bypass = x[:, C:] if mixed.shape[2] == x.shape[2] else self.mp(x[:, C:])
        return channel_shuffle(torch.cat([mixed, bypass], dim=1), self.k)

    def wider(self, k: int) -> None:
        for op in self._ops:
            widen(op, self.C // self.k, self.C // k)
        self.k = k


def widen(op: nn.Module, C: int, C_new: int) -> None:
    """From C to C_new channels: the new ones copy channels drawn at random; Parameters are replaced by new ones."""
    index = torch.cat([torch.arange(C), torch.randint(C, (C_new - C,))])
    half = torch.cat([torch.arange(C // 2), torch.randint(C // 2, (C_new // 2 - C // 2,))])
    for m in op.modules():
        if isinstance(m, nn.Conv2d):
            weight = m.weight.data[index if m.out_channels == C else half]
            if m.groups == 1:
                weight = weight[:, index]
            else:
                m.groups = C_new
            m.weight = nn.Parameter(weight)
            m.in_channels, m.out_channels = C_new, weight.shape[0]
        elif isinstance(m, nn.BatchNorm2d):
            m.num_features = C_new
            m.running_mean, m.running_var = m.running_mean[index], m.running_var[index]


class Drnas(Network):
    """Each forward draws its weights from Dirichlet(elu(alpha) + 1), then masks and renormalises them."""

    candidates = len(PRIMITIVES) - 1

    def __init__(self, C: int = 12, layers: int = 4, steps: int = 2, k: int = 6) -> None:
        self.k = k
        super().__init__(C, layers, steps)
        self._arguments = (C, layers, steps, k)
        self.mask: Tensor | None = None

    def make_cell(self, *arguments: Any) -> nn.Module:
        return Cell(self._steps, *arguments, mixed=partial(DrnasMixedOp, k=self.k))

    def cell_arguments(self, cell: nn.Module) -> tuple[Any, ...]:
        weights = torch.distributions.Dirichlet(F.elu(self.alphas(cell)) + 1).rsample()
        if self.mask is not None:
            weights = weights * self.mask
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return (weights,)

    def wider(self, k: int) -> None:
        self.k = k
        self._arguments = (*self._arguments[:-1], k)
        for cell in self.cells:
            for op in cell._ops:
                op.wider(k)

    def prune(self, kept: Sequence[int]) -> None:
        """Keeps `kept` on the first edge, the same rotated by one on the second, and so on."""
        self.mask = torch.zeros_like(self.alphas_normal)
        for e in range(self.edges):
            self.mask[e, [(i + e) % self.candidates for i in kept]] = 1


ENTRIES = [
    Entry("pcdarts_random", PcDartsRandom, "left alone", "the mixed op draws numbers"),
    Entry("pcdarts", PcDarts, "cell", "the forward takes beta as well", (EVAL,)),
    Entry(
        "pcdarts_imagenet", PcDartsImageNet, "op", "each mixed op runs twice in a forward: its statistics move twice", side=96
    ),
    Entry(
        "sdarts_pc",
        SdartsPc,
        "cell",
        "partial channels without beta",
        inner=lambda model, x, y: model.perturbed(random_alpha, x, y),
    ),
    Entry(
        "drnas",
        Drnas,
        "cell",
        "zeros skipped; weights replaced in a run",
        (
            Event(1, "four of seven candidates kept", lambda model, x, y: model.prune((0, 2, 3, 5))),
            Event(2, "k from 6 to 4", lambda model, x, y: model.wider(4)),
        ),
    ),
]
