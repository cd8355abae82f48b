"""patch_mask's kernels in the interpreter: the definition's bits."""

import pytest
import torch
from torch import Tensor

from fastdarts.kernels import patch_mask as kernels
from fastdarts.kernels.arguments import PatchMask
from fastdarts.ops.patch_mask import definition
from tests.ops.exactness import uninitialised_memory_is_nan

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZES = [(3, 8, 12, 4, 2), (1, 4, 4, 4, 1), (2, 15, 35, 5, 0), (4, 9, 3, 1, 26), (2, 6, 90, 2, 135), (0, 4, 4, 2, 1)]


def arguments(n: int, h: int, w: int, p: int, masked: int, dtype: torch.dtype, seed: int = -3, stream: int = 2) -> list:
    """The registered op's arguments at random; an image's index may need all 32 bits."""
    draw = torch.Generator().manual_seed(n + h + w)
    images = torch.randint(256, (n, h, w, 3), generator=draw, dtype=torch.uint8)
    index = torch.randint(2**32, (n,), generator=draw)
    flip = torch.rand(n, generator=draw) < 0.5
    step, fill = torch.tensor([7]), torch.randn(3, generator=draw).to(dtype)
    return [images, index, step, flip, fill, seed, stream, p, masked, MEAN, STD]


def assert_same_bits(args: list) -> None:
    with uninitialised_memory_is_nan():
        ours = kernels.run(PatchMask(*args))
    for mine, want in zip(ours, definition(*args), strict=True):
        assert (mine.dtype == want.dtype and mine.stride() == want.stride()) or not mine.numel()
        assert torch.equal(mine, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_result_is_bitwise_definition(size: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_same_bits(arguments(*size, dtype))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63 - 1, -(2**63), -1])
@pytest.mark.parametrize("stream", [0, 255])
def test_seeds_and_streams_match_definition(seed: int, stream: int) -> None:
    assert_same_bits(arguments(2, 8, 8, 2, 5, torch.float32, seed, stream))


def test_any_strides_are_supported() -> None:
    def spread(t: Tensor) -> Tensor:
        return torch.stack([t, t], 1)[:, 0]

    images, index, step, flip, fill, *rest = arguments(3, 8, 12, 4, 2, torch.float32)
    turned = images.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3)
    x, mask = kernels.run(PatchMask(turned, spread(index), step, spread(flip), spread(fill), *rest))
    want = definition(images, index, step, flip, fill, *rest)
    assert torch.equal(x, want[0]) and torch.equal(mask, want[1])


def test_too_many_patches_are_rejected() -> None:
    with pytest.raises(ValueError, match="at most 65536 patches per image, got 66049"):
        kernels.run(PatchMask(*arguments(1, 257, 257, 1, 1, torch.float32)))
