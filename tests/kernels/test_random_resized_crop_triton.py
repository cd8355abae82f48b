"""random_resized_crop's kernel in the interpreter: the definition's bits; black where an image or a box does not fit."""

import pytest
import torch
import triton
import triton.language as tl

from fastdarts.kernels import launch
from fastdarts.kernels import random_resized_crop as kernels
from fastdarts.kernels.arguments import RandomResizedCrop
from fastdarts.ops.random_resized_crop import MOST_SIDE, definition
from tests.ops.exactness import uninitialised_memory_is_nan
from tests.ops.test_random_resized_crop import SMALL, Crops, crops, photographs


def assert_same_bits(given: Crops, S: int) -> None:
    with uninitialised_memory_is_nan():
        ours = kernels.run(RandomResizedCrop(*given, S))
    want = definition(*given, S)
    assert ours.dtype == want.dtype and ours.stride() == want.stride()
    assert torch.equal(ours, want)


@pytest.mark.parametrize("S", [2, 8])
def test_result_is_bitwise_definition(S: int) -> None:
    assert_same_bits(crops(SMALL), S)


def test_random_boxes_are_bitwise_definition() -> None:
    assert_same_bits(photographs(4, 30, 41), 24)


@pytest.mark.parametrize(("ROWS", "COLS"), [(1, 4), (4, 2), (32, 32)])
def test_any_tile_sizes_are_bitwise_definition(ROWS: int, COLS: int, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"ROWS": ROWS, "COLS": COLS, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr(launch, "table", lambda: {"random_resized_crop.resize": {"default": {"any": row}}})
    launch._settings.cache_clear()
    assert_same_bits(crops([SMALL[2], SMALL[5]]), 6)
    launch._settings.cache_clear()


@triton.jit
def round_all(p_sums, p_total, p_out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(p_out + i, kernels.rounded(tl.load(p_sums + i), tl.load(p_total + i)))


def test_quotients_are_exact_up_to_largest_side() -> None:
    largest = int(3 * MOST_SIDE**2 / 2)  # the shares' sum for one output of a whole side
    totals = torch.tensor([1, 2, 3, 127, 65535, 2**20 + 1, largest - 1, largest]).repeat_interleave(512)
    draw = torch.Generator().manual_seed(0)
    sums = (torch.rand(4096, generator=draw, dtype=torch.float64) * (totals + 1)).long()
    k = torch.randint(2**14, (4096,), generator=draw)
    edges = ((2 * k + 1) * totals // 2**15 + torch.randint(-1, 2, (4096,), generator=draw)).clamp(min=0)
    for numerators in (sums, edges.minimum(totals), totals, 0 * totals):  # where the quotient steps by one, and the ends
        out = torch.empty(4096, dtype=torch.int32)
        round_all[(1,)](numerators.int(), totals.int(), out, BLOCK=4096)
        assert torch.equal(out.long(), (2**15 * numerators + totals) // (2 * totals))


def test_strides_and_sizes_in_32_bits() -> None:
    pixels, start, size, boxes = crops(SMALL[:3])
    spread = [torch.stack([t, t + 1], 1)[:, 0] for t in (start, size.int(), boxes)]
    assert torch.equal(kernels.run(RandomResizedCrop(pixels, *spread, 6)), definition(pixels, start, size, boxes, 6))


def test_no_images_and_no_pixels() -> None:
    assert kernels.run(RandomResizedCrop(*crops([]), 5)).shape == (0, 5, 5, 3)
    pixels, *place = crops(SMALL[:1])
    assert not kernels.run(RandomResizedCrop(pixels[:2], *place, 5)).any()


def test_invalid_images_and_boxes_are_black() -> None:
    wrong = {"start": (-1, 2**40, -(2**63)), "height": (0, 2**62), "width": (MOST_SIDE + 1,)}
    wrong |= {"top": (-1, 4, 2**63 - 1), "left": (3, -(2**63)), "h": (0, 7), "w": (2**62,)}
    each = [(name, value) for name, values in wrong.items() for value in values]
    pixels, start, size, boxes = crops([SMALL[2]] * (len(each) + 2))
    want = definition(pixels, start, size, boxes, 4)
    want[1:-1] = 0
    columns = {"start": start, "height": size[:, 0], "width": size[:, 1]}
    columns |= {name: boxes[:, i] for i, name in enumerate(("top", "left", "h", "w"))}
    for n, (name, value) in enumerate(each, 1):
        columns[name][n] = value
    assert torch.equal(kernels.run(RandomResizedCrop(pixels, start, size, boxes, 4)), want)
