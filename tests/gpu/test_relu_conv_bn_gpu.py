"""relu_conv_bn by Triton on a GPU: as exact as eager, the same bits in each run, captured, compiled, registered."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdarts.ops.relu_conv_bn import relu_conv_bn
from tests.ops.exactness import Named, assert_exact, double, gradients, uninitialised_memory_is_nan
from tests.ops.test_relu_conv_bn import OP, LayerCall

pytestmark = pytest.mark.gpu
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SIZES: list[dict[str, Any]] = [
    {},
    {"N": 65, "C": 4, "D": 4, "H": 4, "W": 4},
    {"N": 1, "C": 48, "D": 16, "H": 16, "W": 10, "channels_last": False},
    {"N": 2, "C": 70, "D": 138, "H": 8, "W": 6},
    {"N": 16, "C": 256, "D": 64, "H": 32, "W": 32},
    {"C": 12, "D": 8, "shift": 1e3},
    {"affine": True},
    {"N": 16, "C": 128, "D": 36, "H": 32, "W": 32, "affine": True},
]


@pytest.fixture(autouse=True)
def without_tf32() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def on_gpu(named: Named) -> Named:
    return {name: t.detach().cuda().requires_grad_() for name, t in named.items()}


def run(call: LayerCall, named: Named, backend: str, dtype: torch.dtype) -> Named:
    """As LayerCall.run, on the GPU."""
    running, grad = call.constants(dtype)
    running = None if running is None else tuple(t.cuda() for t in running)
    out = call.forward(named, running, backend)
    moved = {} if running is None else {"mean": running[0], "var": running[1]}
    return {"out": out.detach()} | moved | gradients(out, grad.cuda(), named)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(("training", "running"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_as_exact_as_eager(sizes: dict[str, Any], training: bool, running: bool, halves: bool, dtype: torch.dtype) -> None:
    call = LayerCall(**sizes, halves=halves, training=training, running=running)
    named = on_gpu(call.tensors(dtype))
    with uninitialised_memory_is_nan():
        got = run(call, named, "triton", dtype)
    layouts = [replace(call, channels_last=flag) for flag in (False, True)]
    eager = [run(c, on_gpu(c.tensors(dtype)), "definition", dtype) for c in layouts]
    assert_exact(got, eager, run(call, double(named), "definition", torch.float64), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("halves", [False, True])
def test_runs_are_bitwise_identical(halves: bool, dtype: torch.dtype) -> None:
    call = LayerCall(64, 64, 16, 32, 32, halves=halves)
    named = on_gpu(call.tensors(dtype))
    first = run(call, named, "triton", dtype)
    for _ in range(5):
        again = run(call, named, "triton", dtype)
        assert all(torch.equal(again[name], first[name]) for name in first)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "call",
    [LayerCall(), LayerCall(halves=True, training=False), LayerCall(2, 5, 3, 3, 5), LayerCall(affine=True)],
    ids=str,
)
def test_opcheck(call: LayerCall, dtype: torch.dtype) -> None:
    x, weights, *affine = call.parts(on_gpu(call.tensors(dtype)))
    x, affine = x.contiguous(memory_format=torch.channels_last), [[t] if call.affine else [] for t in affine]
    running = ([], []) if call.training else [[t.cuda()] for t in call.constants(dtype)[0]]
    args = [x], weights, [len(weights)], *affine, *running, 1e-5, 0
    torch.library.opcheck(OP.default, args)
    (out,), normalised, (statistics,) = OP(*args)
    assert out.is_contiguous(memory_format=torch.channels_last)
    for needs in ((True, True), (False, True), (True, False), (False, False)):
        given = [torch.ones_like(out)], [x], weights, [len(weights)], affine[0], normalised or [out], [statistics]
        args = *given, 1e-5, call.training, [needs[0]], needs[1], 0
        torch.library.opcheck(torch.ops.fastdarts.relu_conv_bn_backward.default, args)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_half_precision_and_keeps_parameters(dtype: torch.dtype) -> None:
    call = LayerCall(halves=True)
    named = on_gpu(call.tensors())
    running = tuple(t.cuda() for t in call.constants()[0])
    with torch.autocast("cuda", dtype):
        out = relu_conv_bn(named["x"], [named["w0"], named["w1"]], running, training=True, backend="triton")
    assert out.dtype == dtype and running[0].dtype == torch.float32
    grads = gradients(out, torch.ones_like(out), named)
    assert {g.dtype for g in grads.values()} == {torch.float32}


def test_capture_and_compile() -> None:
    call = LayerCall(halves=True)
    named = on_gpu(call.tensors())
    running = tuple(t.cuda() for t in call.constants()[0])

    def forward(x: Tensor, *weights: Tensor) -> Tensor:
        return relu_conv_bn(x, weights, (running[0].clone(), running[1].clone()), training=True, backend="triton")

    inputs = list(named.values())
    out = forward(*inputs)
    by = torch.randn_like(out)
    want = [out, *torch.autograd.grad(out, inputs, by)]
    out = torch.compile(forward, fullgraph=True)(*inputs)
    assert all(map(torch.equal, [out, *torch.autograd.grad(out, inputs, by)], want))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward(*inputs)
        grads = torch.autograd.grad(captured, inputs, by)
    with torch.no_grad():
        inputs[0] *= 0.5
    graph.replay()
    out = forward(*inputs)
    assert all(map(torch.equal, [captured, *grads], [out, *torch.autograd.grad(out, inputs, by)]))
