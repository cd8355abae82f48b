"""Codebases that decide between an edge's candidates in a run: DARTS-PT (lists by edge, noise), SGAS, lists that shrink.

Notation: C channels of a node, E edges, K candidates.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.darts import Cell, MixedOp, Network
from tests.zoo.driver import Entry, Event, event, loss_of
from tests.zoo.operations import PRIMITIVES


class SkippingMixedOp(MixedOp):
    """A candidate whose weight is zero is not run."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True) if w != 0)


class DartsPt(Network):
    """`primitives[reduction]` lists each edge's candidates; decided edges' rows are overwritten by one-hots through `.data`."""

    def __init__(
        self, primitives: tuple[Sequence[Sequence[str]], Sequence[Sequence[str]]], C: int = 4, layers: int = 4
    ) -> None:
        self.primitives, self.candidates = primitives, len(primitives[0][0])
        super().__init__(C, layers, steps=2)
        self._arguments = (primitives, C, layers)
        self.projected: dict[tuple[bool, int], int] = {}
        self.masked: tuple[bool, int, int] | None = None

    def make_cell(self, *arguments: Any) -> nn.Module:
        rows = iter(self.primitives[arguments[3]])
        return Cell(self._steps, *arguments, mixed=lambda C, stride: SkippingMixedOp(C, stride, next(rows)))

    def cell_arguments(self, cell: nn.Module) -> tuple[Any, ...]:
        (weights,) = super().cell_arguments(cell)
        for (reduction, e), k in self.projected.items():
            if reduction == cell.reduction:
                weights[e].data.copy_(F.one_hot(torch.tensor(k), weights.shape[1]))
        if self.masked is not None and self.masked[0] == cell.reduction:
            weights[self.masked[1]].data[self.masked[2]] = 0
        return (weights,)

    def project(self, reduction: bool, e: int, k: int) -> None:
        """Edge e of that kind of cell is decided: candidate k."""
        self.projected[reduction, e] = k

    @torch.no_grad()
    def score(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The validation losses without a candidate, in train mode: running statistics move."""
        losses = []
        for k in range(self.alphas_normal.shape[1]):
            self.masked = (False, 2, k)
            losses.append(loss_of(self, x, y))
        self.masked = None
        return {"scores": torch.stack(losses)}


class SgasMixedOp(MixedOp):
    def forward(self, x: Tensor, weights: Tensor | None, selected_idx: int | None = None) -> Tensor:
        if selected_idx is None:
            return super().forward(x, weights)
        return self._ops[selected_idx](x)


class SgasCell(Cell):
    """selected_idxs: for each edge -1 (mixed), 0 (none: pruned) or the chosen candidate."""

    def forward(self, s0: Tensor, s1: Tensor, weights: Sequence[Tensor], selected_idxs: Sequence[int]) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(self._steps):
            outs = []
            for j, h in enumerate(states, start=offset):
                if selected_idxs[j] == -1:
                    outs.append(self._ops[j](h, weights[j]))
                elif selected_idxs[j] != PRIMITIVES.index("none"):
                    outs.append(self._ops[j](h, None, selected_idxs[j]))
            offset += len(states)
            states.append(sum(outs))
        return torch.cat(states[-self._multiplier :], dim=1)


class Sgas(Network):
    """Each edge's alpha is a tensor of its own; a decided edge's no longer learns."""

    def __init__(self, C: int = 4, layers: int = 3, steps: int = 2) -> None:
        super().__init__(C, layers, steps)
        self.alphas_normal, self.alphas_reduce = (
            [row.detach().clone().requires_grad_() for row in alphas] for alphas in self._arch_parameters
        )
        self._arch_parameters = [*self.alphas_normal, *self.alphas_reduce]
        self.selected = [-1] * self.edges, [-1] * self.edges

    def make_cell(self, *arguments: Any) -> nn.Module:
        return SgasCell(self._steps, *arguments, mixed=SgasMixedOp)

    def cell_arguments(self, cell: nn.Module) -> tuple[Any, ...]:
        return [F.softmax(alpha, dim=-1) for alpha in self.alphas(cell)], self.selected[cell.reduction]

    def select(self, reduction: bool, e: int, primitive: str) -> None:
        self.selected[reduction][e] = PRIMITIVES.index(primitive)
        alpha = (self.alphas_reduce if reduction else self.alphas_normal)[e]
        alpha.requires_grad_(False)
        alpha.grad = None


class Shrinking(Network):
    """The weakest candidate of each edge is taken out of its list in a run, with its weights; alpha keeps its shape."""

    def __init__(self, C: int = 4, layers: int = 3, steps: int = 2) -> None:
        super().__init__(C, layers, steps)
        self.kept = [[list(range(self.candidates)) for _ in range(self.edges)] for _ in range(2)]

    def cell_arguments(self, cell: nn.Module) -> tuple[Any, ...]:
        rows = zip(self.alphas(cell), self.kept[cell.reduction], strict=True)
        return ([F.softmax(alpha[kept], dim=-1) for alpha, kept in rows],)

    def drop_weakest(self) -> None:
        for reduction, alphas in enumerate((self.alphas_normal, self.alphas_reduce)):
            for e, kept in enumerate(self.kept[reduction]):
                weakest = int(alphas[e, kept].argmin())
                del kept[weakest]
                for cell in self.cells:
                    if cell.reduction == reduction:
                        del cell._ops[e]._ops[weakest]


BY_EDGE = (
    [
        ("skip_connect", "dil_conv_3x3", "noise"),
        ("skip_connect", "dil_conv_5x5", "none"),
        ("max_pool_3x3", "sep_conv_3x3", "noise"),
        ("skip_connect", "sep_conv_3x3", "avg_pool_3x3"),
        ("sep_conv_5x5", "dil_conv_5x5", "none"),
    ],
    [
        ("max_pool_3x3", "avg_pool_3x3", "sep_conv_5x5"),
        ("skip_connect", "dil_conv_5x5", "noise"),
        ("skip_connect", "sep_conv_3x3", "none"),
        ("noise", "dil_conv_3x3", "max_pool_3x3"),
        ("sep_conv_3x3", "skip_connect", "avg_pool_3x3"),
    ],
)
ENTRIES = [
    Entry(
        "darts_pt",
        partial(DartsPt, BY_EDGE),
        "op",
        "zeros skipped; noise draws numbers edge by edge and is not fused",
        (
            event(1, "a normal edge decided", "project", False, 0, 1),
            event(1, "a reduction edge decided: noise", "project", True, 1, 2),
            Event(2, "scores under no_grad", lambda model, x, y: model.score(x, y)),
        ),
    ),
    Entry(
        "sgas",
        Sgas,
        "op",
        "decided edges run one candidate without weight, or nothing",
        (
            event(1, "a normal edge decided: skip", "select", False, 0, "skip_connect"),
            event(1, "a reduction edge decided: sep_conv_3x3", "select", True, 0, "sep_conv_3x3"),
            event(2, "a normal edge pruned", "select", False, 3, "none"),
            event(2, "a reduction edge pruned", "select", True, 4, "none"),
        ),
    ),
    Entry(
        "shrinking",
        Shrinking,
        "cell",
        "lists of candidates shrink in a run",
        (event(1, "seven of eight", "drop_weakest"), event(2, "six of eight", "drop_weakest")),
    ),
]
