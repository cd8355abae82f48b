"""Forwards of discrete cells that are no sums of their layers' outputs, or not always: they are left alone, with the reason."""

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from fastdarts.interop import ConvertError, convert
from tests.interop.discrete import Cell, network
from tests.support.backends import needs_native

pytestmark = needs_native


def positive(cell: Cell, terms: list[Tensor]) -> Tensor:
    return (terms[0] + terms[1]).relu()


def shifted(cell: Cell, terms: list[Tensor]) -> Tensor:
    return terms[0] + terms[1] + 1e-3


def dropped_out(cell: Cell, terms: list[Tensor]) -> Tensor:
    return nn.functional.dropout(terms[0] + terms[1], 0.5, cell.training)


def first(cell: Cell, terms: list[Tensor]) -> Tensor:
    return terms[0]


def smaller(cell: Cell, terms: list[Tensor]) -> Tensor:
    return (terms[0] + terms[1])[:, :, ::2, ::2]


def detached(cell: Cell, terms: list[Tensor]) -> Tensor:
    return terms[0] + (terms[1].detach() if cell.training else terms[1])


def written(cell: Cell, terms: list[Tensor]) -> Tensor:
    return terms[1].add_(terms[0])


def noted(cell: Cell, terms: list[Tensor]) -> Tensor:
    cell.last = terms[0]
    return terms[0] + terms[1]


JOINS = {
    positive: "no sum of its layers' outputs",
    shifted: "no sum of its layers' outputs",
    dropped_out: "no sum of its layers' outputs",
    first: "not each of its operations leads to one node",
    smaller: "changes the shape or dtype of a layer's input",
    detached: "uses detach",
    noted: "sets last",
}


def test_writing_to_states_is_left_alone() -> None:
    """Where an identity returns a state itself; outputs of other layers may be written to."""

    class Written(Cell):
        join = written

    report = {line.name: line for line in convert(network(Written))}
    assert [report[f"cells.{i}"].became for i in range(3)] == ["left alone", "cell", "left alone"]
    assert "writes to its inputs or states" in report["cells.0"].why


@pytest.mark.parametrize("join", JOINS)
def test_other_forwards_are_left_alone(join: Callable[[Cell, list[Tensor]], Tensor]) -> None:
    class Other(Cell):
        pass

    Other.join = join
    with pytest.raises(ConvertError, match=JOINS[join]):
        convert(network(Other))


class Residual(Cell):
    def forward(self, s0: Tensor, s1: Tensor, probability: float) -> Tensor:
        return super().forward(s0, s1, probability).mul(2)


class Swapped(Cell):
    """Differs in training only."""

    def forward(self, s0: Tensor, s1: Tensor, probability: float) -> Tensor:
        return super().forward(s1, s0, probability) if self.training else super().forward(s0, s1, probability)


class Squared(Cell):
    def forward(self, s0: Tensor, s1: Tensor, probability: float) -> Tensor:
        return super().forward(s0.square() if self.training else s0, s1, probability)


class Large(Cell):
    """Differs for images alone, not for stand-ins."""

    def forward(self, s0: Tensor, s1: Tensor, probability: float) -> Tensor:
        out = super().forward(s0, s1, probability)
        return out.relu() if out.shape[2] > 1 else out


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (Residual, "sums other layers' outputs"),
        (Swapped, "sums other layers' outputs"),
        (Squared, "no sum of its layers' outputs"),
        (Large, "differs with drop path of 0.0 in train mode"),
    ],
)
def test_forwards_that_differ_at_times_are_left_alone(cell: type[Cell], why: str) -> None:
    with pytest.raises(ConvertError, match=why):
        convert(network(cell))
