"""Every codebase of the zoo, converted: the same search as before, to rounding."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from fastdarts.interop import ConvertError, Report, convert
from tests.backends import needs_native
from tests.ops.exactness import assert_exact
from tests.zoo import ZOO, Entry, bilevel_steps, images
from tests.zoo.driver import loss_of

pytestmark = needs_native
STEPS = 20
SURE = ("darts", "pcdarts", "pdarts_8", "nasbench201", "shrinking")  # whose float32 gradients are no matter of luck
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
def test_twenty_bilevel_steps_are_those_of_the_original(entry: Entry) -> None:
    """float64: weights, alpha, running statistics, losses and what the codebase's own events give, to 1e-9."""
    own, converted = entry.make(0), entry.make(0)
    convert_as_told(converted, entry)
    count = STEPS if entry.fuses != "left alone" else 2
    want, got = bilevel_steps(own, entry, count, 1), bilevel_steps(converted, entry, count, 1)
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert value.shape == got[name].shape and value.dtype == got[name].dtype, name
        scale = float(value.abs().max().clamp(min=1.0)) if value.numel() else 1.0
        assert not value.numel() or float((got[name] - value).abs().max()) <= 1e-9 * scale, name


@pytest.mark.parametrize("entry", [e for e in ZOO if e.fuses == "cell"], ids=lambda entry: entry.name)
def test_mixed_operations_alone(entry: Entry) -> None:
    """level="op": as many steps as see every event."""
    own, converted = entry.make(0), entry.make(0)
    convert_as_told(converted, entry, "op")
    want, got = (bilevel_steps(model, entry, entry.length, 1) for model in (own, converted))
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9)


def gradients(model: nn.Module, entry: Entry, dtype: torch.dtype) -> dict[str, Tensor]:
    x, y = images(3, entry.side, dtype, count=8)
    loss_of(model, x, y).backward()
    named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    named |= {f"alpha {i}": a.grad for i, a in enumerate(entry.arch(model))}
    return named | {n: b for n, b in model.named_buffers() if b.is_floating_point()}


@pytest.mark.parametrize("entry", [e for e in ZOO if e.name in SURE], ids=lambda entry: entry.name)
@pytest.mark.parametrize("level", ["cell", "op"])
def test_one_step_in_float32_is_as_exact_as_eager(entry: Entry, level: str) -> None:
    model = entry.make(0, torch.float32)
    reference = gradients(deepcopy(model).double(), entry, torch.float64)
    eager = gradients(deepcopy(model), entry, torch.float32)
    convert_as_told(model, entry, level)
    assert_exact(gradients(model, entry, torch.float32), [eager], reference, torch.float32)
