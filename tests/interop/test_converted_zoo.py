"""Every codebase of the zoo, converted: the same search as before, to rounding."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from fastdarts.interop import ConvertError, Report, convert
from tests.ops.exactness import assert_exact
from tests.support.backends import needs_native
from tests.zoo import ZOO, Entry, bilevel_steps
from tests.zoo.darts import Network

pytestmark = needs_native
STEPS = 20
entries = pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)


def convert_as_told(model: nn.Module, entry: Entry, level: str = "cell") -> Report | None:
    """Convert and hold the report to what the zoo says; None where nothing may be fused."""
    if entry.fuses == "left alone":
        with pytest.raises(ConvertError, match="no mixed operation was recognised"):
            convert(model, level=level)
        return None
    report = convert(model, level=level)
    became = {line.became for line in report}
    assert became & ({"cell"} if entry.fuses == level == "cell" else {"cell", "op", "partly"}), str(report)
    assert level == "cell" or "cell" not in became
    return report


@entries
def test_bilevel_steps_match_original(entry: Entry) -> None:
    """As many as see every event of the codebase."""
    assert_same_steps(entry, entry.length)


@pytest.mark.campaign
@entries
def test_twenty_bilevel_steps_match_original(entry: Entry) -> None:
    assert_same_steps(entry, STEPS)


def assert_same_steps(entry: Entry, count: int) -> None:
    """float64: weights, alpha, running statistics, losses and what the codebase's own events give, to 1e-9."""
    own, converted = entry.make(0), entry.make(0)
    convert_as_told(converted, entry)
    want, got = bilevel_steps(own, entry, count, 1), bilevel_steps(converted, entry, count, 1)
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert value.shape == got[name].shape and value.dtype == got[name].dtype, name
        scale = float(value.abs().max().clamp(min=1.0)) if value.numel() else 1.0
        assert not value.numel() or float((got[name] - value).abs().max()) <= 1e-9 * scale, name


@pytest.mark.parametrize("entry", [e for e in ZOO if e.fuses == "cell"], ids=lambda entry: entry.name)
def test_op_level_steps_match_original(entry: Entry) -> None:
    """level="op": as many steps as see every event."""
    own, converted = entry.make(0), entry.make(0)
    convert_as_told(converted, entry, "op")
    want, got = (bilevel_steps(model, entry, entry.length, 1) for model in (own, converted))
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9)


def gradients(cell: nn.Module, dtype: torch.dtype, last: bool = False) -> dict[str, Tensor]:
    """Of a cell's parameters, states and weights, its output and running statistics; last: in channels_last."""
    g = torch.Generator().manual_seed(0)
    channels = [next(m for m in layer.modules() if isinstance(m, nn.Conv2d)).in_channels for layer in before(cell)]
    states = [torch.randn(8, C, 16, 16, generator=g).to(dtype).requires_grad_() for C in channels]
    rows = torch.randn(len(cell._ops), 8, generator=g).softmax(-1).to(dtype).requires_grad_()
    laid_out = [s.contiguous(memory_format=torch.channels_last) for s in states] if last else states
    out = cell(*laid_out, rows)
    (out * torch.randn(out.shape, generator=g).to(dtype)).sum().backward()
    named = {n: p.grad for n, p in cell.named_parameters()} | {f"state {i}": s.grad for i, s in enumerate(states)}
    statistics = {n: b for n, b in cell.named_buffers() if b.is_floating_point()}
    return named | statistics | {"weights": rows.grad, "out": out.detach()}


def before(cell: nn.Module) -> list[nn.Module]:
    return [cell.preprocess0, cell.preprocess1]


@pytest.mark.parametrize("level", ["cell", "op"])
@pytest.mark.parametrize("number", [0, 1], ids=["normal", "reduction"])
def test_float32_cell_is_as_exact_as_eager(number: int, level: str) -> None:
    """Every gradient, the output and the statistics of DARTS' cells of 16 and 32 channels, tensor by tensor."""
    torch.manual_seed(0)
    model = Network(C=16, layers=3, steps=4)
    own = model.cells[number]
    reference = gradients(deepcopy(own).double(), torch.float64)
    eager = [gradients(deepcopy(own), torch.float32, last) for last in (False, True)]
    convert(model, level=level)
    assert_exact(gradients(model.cells[number], torch.float32), eager, reference, torch.float32)
