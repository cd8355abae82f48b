"""masked_loss by Triton on a GPU: as exact as eager, the same bits in each run, captured, compiled, registered."""

import pytest
import torch
from torch import Tensor

from fastdarts.ops.masked_loss import masked_loss
from tests.ops.exactness import Named, assert_exact, uninitialised_memory_is_nan
from tests.ops.test_masked_loss import MEAN, SHAPES, STD, arguments

pytestmark = pytest.mark.gpu
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
NORMS = ["l1", "l2"]


def on_gpu(name: str, dtype: torch.dtype, seed: int = 0, offset: float = 0.0) -> tuple:
    levels, bias, *rest = arguments(SHAPES[name], torch.float32, seed, offset)
    return [t.to("cuda", dtype) for t in levels], bias.to("cuda", dtype), *(t.cuda() for t in rest)


def loss_and_gradients(args: tuple, norm: str, backend: str) -> Named:
    levels, bias = [t.detach().requires_grad_() for t in args[0]], args[1].detach().requires_grad_()
    loss = masked_loss(levels, bias, *args[2:], mean=MEAN, std=STD, norm=norm, backend=backend)
    *grads, grad_bias = torch.autograd.grad(loss, [*levels, bias])
    return {"loss": loss.detach()} | {f"level {i}": g for i, g in enumerate(grads)} | {"bias": grad_bias}


def in_double(args: tuple) -> tuple:
    return [t.double() for t in args[0]], args[1].double(), *args[2:]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", SHAPES)
def test_as_exact_as_eager(name: str, norm: str, dtype: torch.dtype) -> None:
    for seed, offset in ((0, 0.0), (1, 1e3)) if dtype == torch.float32 else ((0, 0.0), (1, 0.0)):
        args = on_gpu(name, dtype, seed, offset)
        with uninitialised_memory_is_nan():
            ours = loss_and_gradients(args, norm, "triton")
        eager, reference = loss_and_gradients(args, norm, "definition"), loss_and_gradients(in_double(args), norm, "definition")
        assert_exact(ours, [eager], reference, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("norm", NORMS)
def test_runs_are_bitwise_identical(norm: str, dtype: torch.dtype) -> None:
    args = on_gpu("mae-imagenet", dtype)
    first = loss_and_gradients(args, norm, "triton")
    for _ in range(5):
        again = loss_and_gradients(args, norm, "triton")
        assert all(torch.equal(again[part], first[part]) for part in first)


@pytest.mark.parametrize("need_grad", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck(dtype: torch.dtype, need_grad: bool) -> None:
    levels, *rest = on_gpu("odd ratios", dtype)
    levels[1] = levels[1].contiguous(memory_format=torch.channels_last)
    args = levels, *rest, list(MEAN), list(STD), "l1", need_grad
    torch.library.opcheck(torch.ops.fastdarts.masked_loss.default, args)


def test_scaled_loss_keeps_small_gradients_in_half_precision() -> None:
    """Without the loss' scale they would be a few of float16's smallest steps; the scale arrives after the op."""
    images = torch.randint(256, (64, 224, 224, 3), device="cuda", dtype=torch.uint8)
    flip, mask = torch.zeros(64, dtype=torch.bool, device="cuda"), torch.ones(64, 28, 28, dtype=torch.bool, device="cuda")
    level = torch.randn(64, 3, 28, 28, device="cuda", dtype=torch.float16)
    grads = []
    for leaf, backend in ((level, "triton"), (level.float(), "definition")):
        leaf.requires_grad_()
        bias = torch.zeros(3, device="cuda", dtype=leaf.dtype)
        loss = masked_loss([leaf], bias, images, flip, mask, mean=MEAN, std=STD, norm="l2", backend=backend)
        grads += torch.autograd.grad(loss.float() * 2.0**15, leaf)
    torch.testing.assert_close(grads[0].float(), grads[1], rtol=2e-3, atol=2e-3 * float(grads[1].abs().max()))


def test_capture_and_compile() -> None:
    args = on_gpu("mae-cifar", torch.float32)
    levels, bias = [t.requires_grad_() for t in args[0]], args[1].requires_grad_()

    def call(bias: Tensor, *levels: Tensor) -> Tensor:
        return masked_loss(levels, bias, *args[2:], mean=MEAN, std=STD, backend="triton")

    inputs = [bias, *levels]
    want = [call(*inputs), *torch.autograd.grad(call(*inputs), inputs)]
    compiled = torch.compile(call, fullgraph=True)
    assert all(map(torch.equal, [compiled(*inputs), *torch.autograd.grad(compiled(*inputs), inputs)], want))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = call(*inputs)
        grads = torch.autograd.grad(loss, inputs)
    with torch.no_grad():
        levels[0] += 0.5
    graph.replay()
    want = [call(*inputs), *torch.autograd.grad(call(*inputs), inputs)]
    assert all(map(torch.equal, [loss, *grads], want))
