"""relu_conv_bn's kernels in the interpreter: as exact as eager, requested gradients only, bitwise reproducible."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fastdarts.kernels import relu_conv_bn as forward_kernels
from fastdarts.kernels import relu_conv_bn_backward as backward_kernels
from fastdarts.kernels.relu_conv_bn import Layer
from fastdarts.kernels.relu_conv_bn_backward import Layer as LayerBackward
from fastdarts.ops import batch_norm
from tests.ops.exactness import Named, assert_exact, double, uninitialised_memory_is_nan
from tests.ops.test_relu_conv_bn import LayerCall

pytestmark = pytest.mark.usefixtures("one_thread")  # on more, eager's own error varies from machine to machine
EPS = 1e-4


def by_kernels(call: LayerCall, named: Named, dtype: torch.dtype, need_x: bool = True, need_weights: bool = True) -> Named:
    """Output, gradients and moved running statistics, by the kernels as the registered ops call them."""
    (x, weights, scale, shift), (running, grad) = call.parts(named), call.constants(dtype)
    mean, var = (None, None) if call.training else running
    with uninitialised_memory_is_nan():
        out, statistics, normalised = forward_kernels.forward(Layer(x, weights, mean, var, scale, shift), EPS)
        layer = LayerBackward(grad, x, weights, normalised, statistics, scale)
        grad_x, *of_parameters = backward_kernels.backward(layer, EPS, call.training, need_x, need_weights)
    assert statistics.dtype == torch.float64 and (out is normalised) != call.affine
    if call.training:
        batch_norm.update_running(running, statistics, out.numel() // out.shape[1], 0.2)
    moved = {"out": out, "mean": running[0], "var": running[1], "d x": grad_x}
    names = [f"d {name}" for name in named if name != "x"]
    return moved | dict(zip(names, (g for grads in of_parameters for g in grads), strict=need_weights))


CALLS: list[dict[str, Any]] = [
    {},
    {"N": 5, "C": 20, "D": 12, "H": 4, "W": 6, "channels_last": False},
    {"N": 2, "C": 70, "D": 4, "H": 8, "W": 10},  # more than one block of input channels, pixels that fill no tile
    {"N": 1, "C": 3, "D": 138, "H": 2, "W": 4},  # and of output channels
    {"C": 12, "D": 8, "shift": 1e3},
    {"affine": True},
    {"N": 1, "C": 3, "D": 138, "H": 2, "W": 4, "affine": True},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sizes", CALLS, ids=str)
def test_as_exact_as_eager(sizes: dict[str, Any], training: bool, halves: bool, dtype: torch.dtype) -> None:
    call = LayerCall(**sizes, halves=halves, training=training)
    named = call.tensors(dtype)
    got = by_kernels(call, named, dtype)
    layouts = (replace(call, channels_last=flag) for flag in (False, True))
    eager = [c.run(c.tensors(dtype), "definition", dtype) for c in layouts]
    assert_exact(got, eager, call.run(double(named), "definition", torch.float64), dtype)


@pytest.mark.parametrize("sizes", [(2, 5, 7, 3, 5), (3, 1, 1, 1, 1), (1, 2, 3, 1, 9)])
def test_odd_sizes_without_halving(sizes: tuple[int, ...]) -> None:
    call = LayerCall(*sizes)
    named = call.tensors()
    got = by_kernels(call, named, torch.float32)
    eager, reference = (
        call.run(tensors, "definition", dtype) for tensors, dtype in ((named, torch.float32), (double(named), torch.float64))
    )
    assert_exact(got, [eager], reference, torch.float32)


@pytest.mark.parametrize(("training", "affine"), [(True, False), (True, True), (False, True)])
def test_requested_gradients_only_and_bitwise_identical(training: bool, affine: bool) -> None:
    call = LayerCall(halves=True, training=training, affine=affine)
    named = call.tensors()
    whole = by_kernels(call, named, torch.float32)
    for need_x, need_weights in ((True, True), (True, False), (False, True), (False, False)):
        got = by_kernels(call, named, torch.float32, need_x, need_weights)
        assert (got["d x"].numel() > 0) == need_x and ("d w1" in got) == need_weights
        assert ("d shift" in got) == (need_weights and affine)
        asked = [name for name in got if got[name].numel()]
        assert all(torch.equal(got[name], whole[name]) for name in asked)


def test_affine_parameters_may_be_float32_as_under_autocast() -> None:
    call = LayerCall(affine=True)
    named = call.tensors(torch.float16)
    wide = named | {name: named[name].float() for name in ("scale", "shift")}
    want, got = (by_kernels(call, each, torch.float16) for each in (named, wide))
    for name, t in want.items():
        assert torch.equal(got[name].half(), t) and (got[name].dtype == torch.float32) == (name in ("d scale", "d shift"))


def test_relu_propagates_nan() -> None:
    call = LayerCall(N=1, H=2, W=2, training=False)
    named = {name: t.detach().clone() for name, t in call.tensors().items()}
    named["x"][0, 0, 0, 1] = torch.nan
    out = by_kernels(call, named, torch.float32)["out"]
    assert out[0, :, 0, 1].isnan().all() and out[0, :, 1].isfinite().all()
