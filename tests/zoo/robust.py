"""Codebases that change a mixed op's output in place: R-DARTS (drop-path; Hessian of alpha), DARTS- (auxiliary skip)."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.darts import Cell, MixedOp, Network
from tests.zoo.driver import Entry, event
from tests.zoo.operations import OPS
from tests.zoo.probes import EVAL, HESSIAN


def drop_path(x: Tensor, drop_prob: float) -> Tensor:
    """Whole images are dropped, in place."""
    keep = 1 - drop_prob
    mask = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype).bernoulli_(keep)
    return x.div_(keep).mul_(mask)


class DropPathCell(Cell):
    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, drop_prob: float = 0.0) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(self._steps):
            outs = (self._ops[offset + j](h, weights[offset + j]) for j, h in enumerate(states))
            s = sum(drop_path(out, drop_prob) if self.training and drop_prob > 0 else out for out in outs)
            offset += len(states)
            states.append(s)
        return torch.cat(states[-self._multiplier :], dim=1)


class RDarts(Network):
    drop_path_prob = 0.0

    def make_cell(self, *arguments: Any) -> nn.Module:
        return DropPathCell(self._steps, *arguments)

    def cell_arguments(self, cell: nn.Module) -> tuple[Any, ...]:
        return (*super().cell_arguments(cell), self.drop_path_prob)

    def set_drop_path(self, prob: float) -> None:
        self.drop_path_prob = prob


def auxiliary_skip(C: int, stride: int) -> nn.Module:
    return OPS["skip_connect"](C, stride)


class AuxiliaryMixedOp(MixedOp):
    """DARTS-: a skip beside the candidates, whose weight decays to zero during the search."""

    beta = 1.0

    def __init__(self, C: int, stride: int) -> None:
        super().__init__(C, stride)
        self.auxiliary_op = auxiliary_skip(C, stride)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        res = super().forward(x, weights)
        res += self.auxiliary_op(x) * self.beta
        return res


class AuxiliaryCell(Cell):
    """The same with the skips beside the mixed ops, so that these are plain and their outputs are added to in place."""

    beta = 1.0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        C, reduction = arguments[3], arguments[4]
        self._aux = nn.ModuleList(
            auxiliary_skip(C, 2 if reduction and j < 2 else 1) for i in range(self._steps) for j in range(2 + i)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(self._steps):
            s = 0
            for j, h in enumerate(states, start=offset):
                res = self._ops[j](h, weights[j])
                res += self._aux[j](h) * self.beta
                s = s + res
            offset += len(states)
            states.append(s)
        return torch.cat(states[-self._multiplier :], dim=1)


class DartsMinus(Network):
    def make_cell(self, *arguments: Any) -> nn.Module:
        return Cell(self._steps, *arguments, mixed=AuxiliaryMixedOp)

    def decay(self, beta: float) -> None:
        for m in self.modules():
            if isinstance(m, AuxiliaryMixedOp | AuxiliaryCell):
                m.beta = beta


class DartsMinusInCell(DartsMinus):
    def make_cell(self, *arguments: Any) -> nn.Module:
        return AuxiliaryCell(self._steps, *arguments)


DECAY = event(1, "beta 0.5", "decay", 0.5), event(2, "beta 0", "decay", 0.0)
ENTRIES = [
    Entry(
        "rdarts",
        RDarts,
        "op",
        "drop-path in place on each mixed op's output",
        (event(1, "drop-path", "set_drop_path", 0.3), HESSIAN, EVAL),
    ),
    Entry("darts_minus", DartsMinus, "left alone", "the mixed op adds a skip that is not in its list", DECAY),
    Entry("darts_minus_in_cell", DartsMinusInCell, "op", "the cell adds to each mixed op's output in place", DECAY),
]
