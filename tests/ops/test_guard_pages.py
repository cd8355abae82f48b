"""The C++ kernels access nothing outside their tensors, which are surrounded by inaccessible pages.

What they allocate themselves, the address sanitizer sees (`make test-sanitized`).
"""

import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdarts import native
from fastdarts.ops.masked_loss import masked_loss
from fastdarts.ops.patch_mask import patch_mask
from fastdarts.ops.random_resized_crop import random_resized_crop
from tests.ops import test_masked_loss, test_patch_mask, test_random_resized_crop
from tests.ops.cells import EVERY, STRIDED, CellCall, dense
from tests.ops.guarded import Guarded, guarded
from tests.ops.test_conv_bn_chain import ChainCall as Chain
from tests.ops.test_relu_conv_bn import LayerCall as Layer
from tests.support.backends import needs_native

pytestmark = [
    needs_native,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(sys.platform != "linux", reason="maps pages as Linux does"),
]
SIZES = ((1, 1, 1, 1), (2, 3, 5, 7), (1, 5, 3, 9), (3, 7, 1, 4), (2, 17, 4, 3), (1, 33, 2, 2), (5, 8, 7, 6))  # N, C, H, W


@pytest.fixture(params=["before", "after"])
def guard(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    with guarded(request.param) as guard:
        yield guard


def backward(outs: tuple[Tensor, ...], of: dict[str, Tensor], guard: Guarded) -> None:
    """By a gradient in the outputs' own layout, so that the kernels read it in place."""
    wanted = [t for t in of.values() if t.requires_grad]
    grads = torch.autograd.grad(outs, wanted, [guard(torch.randn_like(out)) for out in outs])
    assert all(bool(g.isfinite().all()) for g in (*outs, *grads))


def placed(tensors: dict[str, Tensor], guard: Guarded) -> dict[str, Tensor]:
    return {name: guard(t) for name, t in tensors.items()}


def mixed_cell(guard: Guarded, dtype: torch.dtype) -> None:
    for N, C, H, W in SIZES:
        for stride, k, chosen in ((1, 1, False), (2, 1, False), (2, 2, False), (1, 2, True)):
            even = 2 * k if stride == 2 else k
            graph = dense(1, stride, STRIDED if stride == 2 else EVERY)
            call = CellCall(graph, N, even * C, stride * H, stride * W, k, chosen=chosen, training=N * H * W > 1)
            named, rest = placed(call.tensors(dtype), guard), call.constants(dtype)
            channels = None if rest["channels"] is None else guard(rest["channels"])
            out = call.forward(named, (guard(rest["mean"]), guard(rest["var"])), channels, "cpu")
            backward((out,), named, guard)


def relu_conv_bn(guard: Guarded, dtype: torch.dtype) -> None:
    for N, C, H, W in SIZES:
        for halves in (False, True):
            D, s = (2 * (C // 2 + 1), 2) if halves else (C + 2, 1)
            call = Layer(N, C, D, s * H, s * W, halves=halves, training=N * H * W > 1)
            named, (mean, var) = placed(call.tensors(dtype), guard), call.constants(dtype)[0]
            backward((call.forward(named, (guard(mean), guard(var)), "cpu"),), named, guard)


def conv_bn_chain(guard: Guarded, dtype: torch.dtype) -> None:
    for N, C, H, W in SIZES:
        for strides in ((1, 1), (2, 1), (2, 2)):
            call = Chain(N, C, (C + 1, 5), strides, 4 * H + 1, 2 * W + 2)
            named = placed(call.tensors(dtype), guard)
            running = [(guard(mean), guard(var)) for mean, var in call.buffers(dtype)]
            backward(call.forward(named, running, "cpu"), named, guard)


def masked(guard: Guarded, dtype: torch.dtype) -> None:
    for norm in test_masked_loss.NORMS:
        for name in ("odd ratios", "one level", "smaller", "one pixel", "one column", "many images"):
            levels, *rest = test_masked_loss.arguments(test_masked_loss.SHAPES[name], dtype)
            levels = [guard(level.requires_grad_()) for level in levels]
            bias, images, flip, mask = map(guard, rest)
            named = {"bias": bias.requires_grad_()} | {str(i): level for i, level in enumerate(levels)}
            statistics = {"mean": test_masked_loss.MEAN, "std": test_masked_loss.STD}
            loss = masked_loss(levels, bias, images, flip, mask, norm=norm, backend="cpu", **statistics)
            backward((loss,), named, guard)


def patches(guard: Guarded, dtype: torch.dtype) -> None:
    for N, H, W, patch in ((1, 1, 1, 1), (3, 5, 7, 1), (2, 9, 15, 3), (5, 7, 35, 7), (2, 12, 20, 4)):
        tensors, settings = test_patch_mask.arguments(N, H, W, patch, (H // patch) * (W // patch) // 2, torch.float32)
        given = [guard(t.requires_grad_(t.is_floating_point())) for t in tensors]
        x, _ = patch_mask(*given, **settings, backend="cpu")
        backward((x,), {"fill": given[-1]}, guard)


def crops(guard: Guarded, dtype: torch.dtype) -> None:
    """The box of the cache's last image ends with the cache."""
    for S in (1, 7, 16, 33):
        for place in test_random_resized_crop.SMALL:
            pixels, start, size, boxes = test_random_resized_crop.crops([place])
            end = int(start[0]) + 3 * place[0] * place[1]
            for bytes_of, first in ((pixels[:end], start), (pixels[int(start[0]) :], start * 0)):
                random_resized_crop(guard(bytes_of), *map(guard, (first, size, boxes)), image_size=S, backend="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", [mixed_cell, relu_conv_bn, conv_bn_chain, masked])
def test_kernels_stay_within_tensors(
    op: Callable[[Guarded, torch.dtype], None], dtype: torch.dtype, guard: Guarded, isa: str
) -> None:
    """Forward and backward, odd sizes, by each instruction set."""
    op(guard, dtype)


@pytest.mark.parametrize("op", [patches, crops])
def test_kernels_stay_within_images(op: Callable[[Guarded, torch.dtype], None], guard: Guarded, isa: str) -> None:
    op(guard, torch.float32)


def test_guard_page_is_unreadable(guard: Guarded) -> None:
    """The system calls write(2) with it: EFAULT, where a load of the process' own would end it."""
    tensor = guard(torch.arange(5.0))
    libc, (end, begin) = ctypes.CDLL(None, use_errno=True), os.pipe()
    inside, beside = (0, -1) if guard.side == "before" else (tensor.nbytes - 1, tensor.nbytes)
    written = [libc.write(begin, ctypes.c_void_p(tensor.data_ptr() + place), 1) for place in (inside, beside)]
    assert written == [1, -1] and ctypes.get_errno() == errno.EFAULT
    for pipe in (end, begin):
        os.close(pipe)


@pytest.mark.skipif("libasan" not in os.environ.get("LD_PRELOAD", ""), reason="for `make test-sanitized`")
def test_sanitized_module_is_under_test() -> None:
    assert b"__asan_init" in Path(native.module().__file__).read_bytes()
