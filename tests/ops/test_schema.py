"""Schemas made from classes of arguments, and kernels that are handed an object of them."""

from typing import NamedTuple
from uuid import uuid4

import pytest
import torch
from torch import Tensor

from fastdarts.ops.schema import Op, schema


class Arguments(NamedTuple):
    x: Tensor
    others: list[Tensor]
    maybe: Tensor | None
    sizes: list[int]
    shares: list[float]
    flags: list[bool]
    n: int
    eps: float
    flag: bool
    word: str


class Results(NamedTuple):
    total: Tensor
    pieces: list[Tensor]


def test_schema_supports_every_type() -> None:
    assert schema(Arguments, Results) == (
        "(Tensor x, Tensor[] others, Tensor? maybe, int[] sizes, float[] shares, bool[] flags, int n, float eps, bool flag, "
        "str word) -> (Tensor total, Tensor[] pieces)"
    )
    assert schema(Results, Tensor) == "(Tensor total, Tensor[] pieces) -> Tensor"


def test_unsupported_type_is_rejected() -> None:
    class Wrong(NamedTuple):
        x: dict

    with pytest.raises(KeyError, match="dict"):
        schema(Wrong, Tensor)


def test_kernels_read_arguments_by_name() -> None:
    name = f"toy_{uuid4().hex}"
    op = Op(name, Arguments, Results)

    @op.fake
    def fake(a: Arguments) -> Results:
        return Results(a.x.new_empty(a.n), [other.new_empty(a.sizes) for other in a.others])

    given = Arguments(torch.empty(3, device="meta"), [torch.empty(1, device="meta")], None, [2, 5], [], [], 4, 0.1, True, "w")
    total, pieces = getattr(torch.ops.fastdarts, name)(*given)
    assert total.shape == (4,) and [piece.shape for piece in pieces] == [(2, 5)]
    total, _ = getattr(torch.ops.fastdarts, name)(**given._asdict())
    assert total.shape == (4,)
