"""The definition's bilevel step on a GPU: against float64 on the CPU, and captured in a CUDA graph."""

import pytest
import torch

from bench.workload import CELL, SUPERNETS, Workload, build

pytestmark = pytest.mark.gpu
SIZES = {name: 32 if preset.stem == "cifar" else 64 for name, preset in SUPERNETS.items()} | {CELL: 16}


def losses(supernet: str, side: str, dtype: str = "float64", device: str = "cuda", first: int = 1) -> list[float]:
    """Of the steps `first` to 5."""
    run = build(Workload(supernet, 4, SIZES[supernet], 2, dtype, device), side)
    return [run().item() for _ in range(first, 6)]


@pytest.mark.parametrize("supernet", SIZES)
@pytest.mark.parametrize("side", ["eager", "channels-last"])
def test_float64_follows_the_cpu(supernet: str, side: str) -> None:
    assert losses(supernet, side) == pytest.approx(losses(supernet, "eager", device="cpu"), rel=1e-7)


@pytest.mark.parametrize("supernet", SIZES)
@pytest.mark.parametrize(("dtype", "rel"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_lower_precision_starts_near_float64(supernet: str, dtype: str, rel: float) -> None:
    with torch.backends.cudnn.flags(allow_tf32=False):
        (first, *_) = losses(supernet, "eager", dtype)
    assert first == pytest.approx(losses(supernet, "eager", device="cpu")[0], rel=rel)


@pytest.mark.parametrize("supernet", SIZES)
@pytest.mark.parametrize("side", ["graph", "graph-channels-last"])
def test_a_captured_step_is_the_step(supernet: str, side: str) -> None:
    captured = losses(supernet, side, first=4)  # capture takes steps 1 to 3 as its warm-up
    assert captured == pytest.approx(losses(supernet, "eager")[3:], rel=1e-7)
