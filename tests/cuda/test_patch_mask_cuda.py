"""patch_mask's CUDA kernels as plain C++: the definition's bits."""

from pathlib import Path

import pytest
import torch

from fastdarts.ops.patch_mask import definition
from fastdarts.ops.philox import Purpose
from tests.cuda.harness import Order, run

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# N, H, W, patch, masked; more patches than threads, rows that are and are not a whole number of 16 bytes, all and none masked
SIZES = [(3, 8, 12, 4, 2), (1, 4, 4, 4, 1), (2, 15, 35, 5, 0), (2, 9, 3, 1, 26), (2, 6, 90, 2, 135), (1, 40, 56, 1, 1500)]
SIZES += [(2, 32, 32, 4, 39), (2, 8, 16, 8, 2)]


def masked_images(folder: Path, size: tuple[int, ...], dtype: torch.dtype, seed: int, stream: int, order: Order) -> None:
    """Assert the definition's bits."""
    N, H, W, patch, masked = size
    draw = torch.Generator().manual_seed(N + H + W)
    images = torch.randint(256, (N, H, W, 3), generator=draw, dtype=torch.uint8)
    index = torch.randint(2**32, (N,), generator=draw)
    flip = torch.rand(N, generator=draw) < 0.5
    step, fill = torch.tensor([2**32 - 7]), torch.randn(3, generator=draw).to(dtype)
    want = definition(images, index, step, flip, fill, seed, stream, patch, masked, MEAN, STD)
    given = {"images": images, "index": index, "step": step, "flip": flip, "fill": fill, "seed": seed}
    given |= {
        "mask": torch.ones(N, H // patch, W // patch, dtype=torch.bool),
        "x": torch.full((N, H, W, 3), torch.nan).to(dtype),
    }
    given |= {"use": Purpose.MASK + 256 * stream, "num_masked": masked, "N": N, "H": H, "W": W, "side": patch}
    given |= {"shift": torch.tensor([255 * m for m in MEAN]), "scale": torch.tensor([1 / (255 * s) for s in STD])}
    got = run(folder, "patch_mask", dtype, 0, given, order)
    assert torch.equal(got["mask"], want[1])
    assert torch.equal(got["x"].permute(0, 3, 1, 2), want[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_result_is_bitwise_definition(size: tuple[int, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    masked_images(tmp_path, size, dtype, -3, 2, "forward")


@pytest.mark.parametrize("seed", [0, 2**31, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize(("stream", "order"), [(0, "forward"), (255, "backward")])
def test_seeds_and_streams_match_definition(seed: int, stream: int, order: Order, tmp_path: Path) -> None:
    masked_images(tmp_path, (2, 8, 8, 2, 5), torch.float32, seed, stream, order)
