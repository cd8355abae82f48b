"""masked_loss' kernels in the interpreter: as exact as eager, nothing written twice, the same bits in each run."""

import math

import pytest
import torch
from torch import Tensor

from fastdarts.kernels import masked_loss as kernels
from fastdarts.kernels.arguments import MaskedLoss
from fastdarts.ops.masked_loss import definition
from tests.ops.exactness import Named, assert_exact, uninitialised_memory_is_nan

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SHAPES = {  # N, H, W, p, sizes of the levels, share of masked patches
    "one tile": (1, 16, 16, 8, [(4, 4), (2, 2)], 0.5),
    "mae-cifar": (1, 32, 32, 4, [(32, 32), (16, 16), (8, 8)], 0.75),
    "odd ratios": (2, 15, 35, 5, [(4, 9), (7, 34), (14, 1)], 0.5),
    "tiles both ways": (1, 24, 72, 8, [(3, 9), (1, 1)], 0.5),
    "smaller": (1, 6, 10, 2, [(7, 13), (10, 11), (6, 10)], 0.5),
    "one pixel": (3, 1, 1, 1, [(1, 1), (3, 5)], 0.6),
    "one column": (1, 33, 3, 3, [(5, 7), (33, 1)], 0.5),
    "dense": (1, 16, 48, 16, [(5, 5)], 1.0),
}


def arguments(shape: tuple, dtype: torch.dtype, offset: float = 0.0, seed: int = 0) -> tuple:
    """(levels, bias, images, flip, mask) at random; the first level's mean is `offset`."""
    n, h, w, p, sizes, share = shape
    draw = torch.Generator().manual_seed(seed + n + 10 * h + 100 * w)
    levels = [torch.randn(n, 3, *size, generator=draw) + offset * (i == 0) for i, size in enumerate(sizes)]
    bias = torch.randn(3, generator=draw)
    images = torch.randint(256, (n, h, w, 3), generator=draw, dtype=torch.uint8)
    flip = torch.rand(n, generator=draw) < 0.5
    mask = torch.rand(n, h // p, w // p, generator=draw) < share
    mask[0, 0, 0] = True
    return [level.to(dtype) for level in levels], bias.to(dtype), images, flip, mask


def named(loss: Tensor, grad_levels: list[Tensor], grad_bias: Tensor, dtype: torch.dtype) -> Named:
    return {"loss": loss} | {f"level {i}": g.to(dtype) for i, g in enumerate(grad_levels)} | {"bias": grad_bias.to(dtype)}


def by_kernels(args: tuple, norm: str, need_grad: bool = True) -> Named:
    with uninitialised_memory_is_nan():
        loss, *grads = kernels.run(MaskedLoss(*args, MEAN, STD, norm, need_grad))
    return named(loss, *grads, args[1].dtype)


def by_definition(args: tuple, norm: str, dtype: torch.dtype) -> Named:
    levels, bias = [t.to(dtype).requires_grad_() for t in args[0]], args[1].to(dtype).requires_grad_()
    loss = definition(levels, bias, *args[2:], MEAN, STD, norm)
    *grads, grad_bias = torch.autograd.grad(loss, [*levels, bias])
    return named(loss.detach(), grads, grad_bias, dtype)


@pytest.mark.parametrize(("norm", "dtype"), [("l1", torch.float32), ("l2", torch.float32), ("l1", torch.float16)])
@pytest.mark.parametrize("name", SHAPES)
def test_as_exact_as_eager(name: str, norm: str, dtype: torch.dtype) -> None:
    for offset in (0.0, 1e3) if (norm, dtype) == ("l2", torch.float32) else (0.0,):
        args = arguments(SHAPES[name], dtype, offset)
        eager, reference = by_definition(args, norm, dtype), by_definition(args, norm, torch.float64)
        assert_exact(by_kernels(args, norm), [eager], reference, dtype)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_bitwise_identical_for_any_strides_runs_and_without_gradients(norm: str) -> None:
    levels, bias, images, flip, mask = arguments(SHAPES["odd ratios"], torch.float32)
    want = by_kernels((levels, bias, images, flip, mask), norm)
    big = torch.zeros(4, 20, 60, 5, dtype=torch.uint8)
    big[::2, 4:19, 2:37, 1:4] = images
    spread = torch.stack([bias, bias], 1)[:, 0], big[::2, 4:19, 2:37, 1:4], torch.stack([flip, ~flip], 1)[:, 0]
    turned = mask.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for same in (
        levels,
        [t.contiguous(memory_format=torch.channels_last) for t in levels],
        [t.transpose(2, 3).contiguous().transpose(2, 3) for t in levels],
    ):
        got = by_kernels((same, *spread, turned), norm)
        assert all(torch.equal(got[part], want[part]) for part in want)
    (loss, *none) = kernels.run(MaskedLoss(levels, bias, images, flip, mask, MEAN, STD, norm, False))
    assert torch.equal(loss, want["loss"])
    assert none[0] == [] and none[1].numel() == 0


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_unmasked_nan_predictions_are_ignored(norm: str) -> None:
    args = arguments((1, 8, 12, 4, [(8, 12)], 0.5), torch.float32)
    want = by_kernels(args, norm)
    pixels = args[4].repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand(1, 3, 8, 12)
    args[0][0][~pixels] = math.nan
    got = by_kernels(args, norm)
    assert all(torch.equal(got[part], want[part]) for part in want)
    assert got["level 0"][~pixels].count_nonzero() == 0


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_no_masked_pixels_and_no_images(norm: str) -> None:
    levels, bias, images, flip, mask = arguments(SHAPES["odd ratios"], torch.float32)
    for few in (
        (levels, bias, images, flip, torch.zeros_like(mask)),
        ([t[:0] for t in levels], bias, images[:0], flip[:0], mask[:0]),
    ):
        got = by_kernels(few, norm)
        assert got.pop("loss").isnan()
        assert all(g.count_nonzero() == 0 for g in got.values())
