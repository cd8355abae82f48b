"""DARTS, and the codebases that only weigh its candidates otherwise: FairDARTS, GAEA, SDARTS.

Notation: C channels of a node, E edges, K candidates.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.zoo.driver import CLASSES, Entry, event, loss_of
from tests.zoo.operations import OPS, PRIMITIVES, FactorizedReduce, ReLUConvBN, convolution
from tests.zoo.probes import EVAL, NEW, SECOND_ORDER

Make = Callable[[int, int], nn.Module]  # (C, stride) -> a mixed op


class MixedOp(nn.Module):
    def __init__(self, C: int, stride: int, primitives: Sequence[str] = PRIMITIVES) -> None:
        super().__init__()
        self._ops = nn.ModuleList(OPS[primitive](C, stride) for primitive in primitives)

    def forward(self, x: Tensor, weights: Sequence[Tensor] | Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=False))


class Cell(nn.Module):
    """`mixed(C, stride)` makes the flat list's members; input 0 or 1 of a reduction cell strides."""

    def __init__(
        self,
        steps: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        mixed: Make = MixedOp,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.preprocess0 = FactorizedReduce(C_prev_prev, C) if reduction_prev else ReLUConvBN(C_prev_prev, C)
        self.preprocess1 = ReLUConvBN(C_prev, C)
        self._steps = self._multiplier = steps
        self._ops = nn.ModuleList(mixed(C, 2 if reduction and j < 2 else 1) for i in range(steps) for j in range(2 + i))

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor | Sequence[Any]) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(self._steps):
            s = sum(self._ops[offset + j](h, weights[offset + j]) for j, h in enumerate(states))
            offset += len(states)
            states.append(s)
        return torch.cat(states[-self._multiplier :], dim=1)


class Network(nn.Module):
    """The CIFAR search network; a codebase overrides `candidates`, `make_cell`, `make_alpha` or `cell_arguments`.

    alphas_normal, alphas_reduce: plain tensors (E, K), shared by all cells of a kind.
    """

    candidates = len(PRIMITIVES)

    def __init__(self, C: int = 4, layers: int = 3, steps: int = 2) -> None:
        super().__init__()
        self._arguments: tuple[Any, ...] = (C, layers, steps)
        self._steps = steps
        self.make_stem(3 * C)
        self.make_cells(C, layers)
        self.alphas_normal, self.alphas_reduce = (self.make_alpha(self.edges, self.candidates) for _ in range(2))
        self._arch_parameters = [self.alphas_normal, self.alphas_reduce]

    @property
    def edges(self) -> int:
        return sum(2 + i for i in range(self._steps))

    def make_stem(self, C_out: int) -> None:
        self.stem = nn.Sequential(convolution(3, C_out, 3, padding=1), nn.BatchNorm2d(C_out))

    def make_cells(self, C: int, layers: int, reduction_prev: bool = False) -> None:
        self.cells = nn.ModuleList()
        C_prev_prev = C_prev = 3 * C
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            C *= 1 + reduction
            self.cells.append(self.make_cell(C_prev_prev, C_prev, C, reduction, reduction_prev))
            reduction_prev = reduction
            C_prev_prev, C_prev = C_prev, self._steps * C
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_prev, CLASSES)

    def make_cell(self, C_prev_prev: int, C_prev: int, C: int, reduction: bool, reduction_prev: bool) -> nn.Module:
        return Cell(self._steps, C_prev_prev, C_prev, C, reduction, reduction_prev)

    def make_alpha(self, edges: int, candidates: int) -> Tensor:
        return (1e-3 * torch.randn(edges, candidates)).requires_grad_()

    def arch_parameters(self) -> list[Tensor]:
        return self._arch_parameters

    def new(self) -> Self:
        """A network of the same shape with fresh weights and this one's alpha (DARTS' second order)."""
        model = type(self)(*self._arguments)
        for x, y in zip(model.arch_parameters(), self.arch_parameters(), strict=True):
            x.data.copy_(y.data)
        return model

    def alphas(self, cell: nn.Module) -> Tensor:
        return self.alphas_reduce if cell.reduction else self.alphas_normal

    def cell_arguments(self, cell: nn.Module) -> tuple[Any, ...]:
        return (F.softmax(self.alphas(cell), dim=-1),)

    def stem_states(self, input: Tensor) -> tuple[Tensor, Tensor]:
        s = self.stem(input)
        return s, s

    def forward(self, input: Tensor) -> Tensor:
        s0, s1 = self.stem_states(input)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, *self.cell_arguments(cell))
        out = self.global_pooling(s1)
        return self.classifier(out.view(out.size(0), -1))


class FairDarts(Network):
    """Independent sigmoids of an alpha that starts at zero; no none."""

    candidates = len(PRIMITIVES) - 1

    def make_cell(self, *arguments: Any) -> nn.Module:
        return Cell(self._steps, *arguments, mixed=partial(MixedOp, primitives=PRIMITIVES[1:]))

    def make_alpha(self, edges: int, candidates: int) -> Tensor:
        return torch.zeros(edges, candidates, requires_grad=True)

    def cell_arguments(self, cell: nn.Module) -> tuple[Any, ...]:
        return (torch.sigmoid(self.alphas(cell)),)


class Gaea(Network):
    """Parameters that are the weights themselves; each edge is handed a list of scalars."""

    def make_alpha(self, edges: int, candidates: int) -> Tensor:
        return nn.Parameter(F.softmax(1e-3 * torch.randn(edges, candidates), dim=-1))

    def cell_arguments(self, cell: nn.Module) -> tuple[Any, ...]:
        return ([list(row) for row in self.alphas(cell)],)


class PositiveMixedOp(MixedOp):
    """GAEA's own: every candidate runs and stays with the module, and those of positive weight count."""

    def forward(self, x: Tensor, weights: Sequence[Tensor] | Tensor) -> Tensor:
        self._fs = [op(x) for op in self._ops]
        return sum(w * out for w, out in zip(weights, self._fs, strict=True) if w > 0)


class OptionalEdgeWeights(Cell):
    """Edges' weights, if any, and whether one candidate is left, which is asked of the search's end only."""

    def forward(
        self, s0: Tensor, s1: Tensor, weights: Tensor, edge_weights: Tensor | None = None, discrete: bool = False
    ) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(self._steps):
            outs = [self._ops[offset + j](h, weights[offset + j]) for j, h in enumerate(states)]
            if edge_weights is not None:
                outs = [edge_weights[offset + j] * out for j, out in enumerate(outs)]
            offset += len(states)
            states.append(sum(outs))
        return torch.cat(states[-self._multiplier :], dim=1)


class GaeaPositive(Gaea):
    """Normal cells are called without edges' weights, reduction cells with those of `edge_weights` (E,)."""

    def __init__(self, C: int = 4, layers: int = 3, steps: int = 2) -> None:
        super().__init__(C, layers, steps)
        self.edge_weights = torch.linspace(0.5, 1.5, self.edges)

    def make_cell(self, *arguments: Any) -> nn.Module:
        return OptionalEdgeWeights(self._steps, *arguments, mixed=PositiveMixedOp)

    def cell_arguments(self, cell: nn.Module) -> tuple[Any, ...]:
        return self.alphas(cell), self.edge_weights if cell.reduction else None, False

    def forget(self) -> None:
        """The weights of some candidates become 0: they run, and neither they nor their layers get a gradient."""
        for alpha in self.arch_parameters():
            alpha.data[1:3, 2::3] = 0.0


class ExponentiatedGradient(Optimizer):
    """w <- w * exp(-lr * dL/dw), rows renormalised: stays on the simplex."""

    def __init__(self, params: list[Tensor], lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(torch.exp(-group["lr"] * p.grad))
                p.div_(p.sum(dim=-1, keepdim=True))


class Sdarts(Network):
    """While the weights learn, alpha's memory holds perturbed softmax weights, and cells are handed those as they are."""

    raw = False

    def cell_arguments(self, cell: nn.Module) -> tuple[Any, ...]:
        return (self.alphas(cell),) if self.raw else super().cell_arguments(cell)

    @contextmanager
    def perturbed(self, perturb: Callable[[nn.Module, Tensor, Tensor], None], x: Tensor, y: Tensor) -> Iterator[None]:
        saved = [p.detach().clone() for p in self.arch_parameters()]
        for p in self.arch_parameters():
            p.data.copy_(F.softmax(p.data, dim=-1))
        self.raw = True
        perturb(self, x, y)
        yield
        self.raw = False
        for p, before in zip(self.arch_parameters(), saved, strict=True):
            p.data.copy_(before)


def random_alpha(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """SDARTS-RS: uniform noise on the weights, which then need not sum to one."""
    for p in model.arch_parameters():
        p.data.add_(torch.empty_like(p).uniform_(-0.03, 0.03)).clamp_(0, 1)


def pgd_alpha(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """SDARTS-ADV: two ascents of the loss in the weights' signs, in eval mode."""
    model.eval()
    for _ in range(2):
        gradients = torch.autograd.grad(loss_of(model, x, y), model.arch_parameters())
        for p, g in zip(model.arch_parameters(), gradients, strict=True):
            p.data.add_(0.01 * g.sign()).clamp_(0, 1)
    model.train()


ENTRIES = [
    Entry("darts", partial(Network, steps=4), "cell", "DARTS itself, all 14 edges"),
    Entry("darts_second_order", Network, "cell", "weights written through .data between forwards", (EVAL, NEW, SECOND_ORDER)),
    Entry("fairdarts", FairDarts, "cell", "only the weights differ", (EVAL,)),
    Entry("gaea", Gaea, "cell", "only the weights differ, lists of scalars", outer=ExponentiatedGradient),
    Entry(
        "gaea_positive",
        GaeaPositive,
        "cell",
        "candidates of weight 0 run and do not count",
        (EVAL, event(2, "zeros", "forget")),
        outer=ExponentiatedGradient,
    ),
    Entry(
        "sdarts_rs", Sdarts, "cell", "only the weights differ", inner=lambda model, x, y: model.perturbed(random_alpha, x, y)
    ),
    Entry("sdarts_adv", Sdarts, "cell", "only the weights differ", inner=lambda model, x, y: model.perturbed(pgd_alpha, x, y)),
]
