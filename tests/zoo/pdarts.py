"""P-DARTS: candidates switched on or off for each edge, dropout after the identity, alpha as Parameters.

Notation: C channels of a node, E edges, K candidates that are on.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tests.zoo.darts import Network
from tests.zoo.driver import Entry, Event
from tests.zoo.operations import OPS, PRIMITIVES, DetachedZero, FactorizedReduce, Identity, ReLUConvBN

PDARTS_OPS = OPS | {"none": lambda C, stride: DetachedZero(stride)}
Switches = Sequence[Sequence[bool]]  # (E, 8)


class MixedOp(nn.Module):
    def __init__(self, C: int, stride: int, switch: Sequence[bool], p: float) -> None:
        super().__init__()
        self.m_ops = nn.ModuleList()
        self.p = p
        for primitive, on in zip(PRIMITIVES, switch, strict=True):
            if on:
                op = PDARTS_OPS[primitive](C, stride)
                self.m_ops.append(nn.Sequential(op, nn.Dropout(p)) if isinstance(op, Identity) and p > 0 else op)

    def update_p(self) -> None:
        for op in self.m_ops:
            if isinstance(op, nn.Sequential) and isinstance(op[0], Identity):
                op[1].p = self.p

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self.m_ops, strict=True))


class Cell(nn.Module):
    def __init__(
        self,
        steps: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        switches: Switches,
        p: float,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.p = p
        self.preprocess0 = FactorizedReduce(C_prev_prev, C) if reduction_prev else ReLUConvBN(C_prev_prev, C)
        self.preprocess1 = ReLUConvBN(C_prev, C)
        self._steps = steps
        self.cell_ops = nn.ModuleList()
        rows = iter(switches)
        for i in range(steps):
            for j in range(2 + i):
                self.cell_ops.append(MixedOp(C, 2 if reduction and j < 2 else 1, next(rows), p))

    def update_p(self) -> None:
        for op in self.cell_ops:
            op.p = self.p
            op.update_p()

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(self._steps):
            s = sum(self.cell_ops[offset + j](h, weights[offset + j]) for j, h in enumerate(states))
            offset += len(states)
            states.append(s)
        return torch.cat(states[-self._steps :], dim=1)


class PDarts(Network):
    def __init__(
        self, switches: tuple[Switches, Switches], p: float = 0.0, C: int = 4, layers: int = 3, steps: int = 2
    ) -> None:
        self.switches, self.p, self.candidates = switches, p, sum(switches[0][0])
        super().__init__(C, layers, steps)
        self._arguments = (switches, p, C, layers, steps)

    def make_cell(self, C_prev_prev: int, C_prev: int, C: int, reduction: bool, reduction_prev: bool) -> nn.Module:
        return Cell(self._steps, C_prev_prev, C_prev, C, reduction, reduction_prev, self.switches[reduction], self.p)

    def make_alpha(self, edges: int, candidates: int) -> Tensor:
        return nn.Parameter(1e-3 * torch.randn(edges, candidates))

    def update_p(self) -> None:
        for cell in self.cells:
            cell.p = self.p
            cell.update_p()


def dropout(p: float, step: int) -> Event:
    def change(model: nn.Module, x: Tensor, y: Tensor) -> None:
        model.p = p
        model.update_p()

    return Event(step, f"dropout of {p}", change)


def switches(*edges: str) -> Switches:
    """The candidates that are on, by number: one string of digits for each edge."""
    return [[str(i) in edge for i in range(len(PRIMITIVES))] for edge in edges]


ALL = switches(*["01234567"] * 5)
FIVE = switches("01346", "13457", "02357", "23467", "03456"), switches("13467", "02347", "01356", "12345", "03567")
THREE = switches("034", "135", "236", "347", "026"), switches("136", "234", "037", "356", "145")
ENTRIES = [
    Entry("pdarts_8", partial(PDarts, (ALL, ALL)), "cell", "the first stage has no dropout"),
    Entry(
        "pdarts_5", partial(PDarts, FIVE, 0.4), "op", "dropout draws numbers edge by edge", (dropout(0.2, 1), dropout(0.0, 3))
    ),
    Entry("pdarts_3", partial(PDarts, THREE, 0.7, layers=4), "op", "dropout draws numbers edge by edge", (dropout(0.3, 2),)),
]
