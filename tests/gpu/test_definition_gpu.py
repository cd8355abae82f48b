"""The definition's bilevel step on a GPU: against float64 on the CPU, and captured in a CUDA graph."""

from functools import cache

import pytest
import torch

from bench.workload import CELL, SUPERNETS, Workload

pytestmark = pytest.mark.gpu
SIZES = {name: 32 if preset.stem == "cifar" else 64 for name, preset in SUPERNETS.items()} | {CELL: 16}


def losses(supernet: str, side: str, calls: int, *, dtype: str = "float64", device: str = "cuda") -> list[float]:
    """Of the first calls."""
    run = Workload(supernet, 4, SIZES[supernet], 2, dtype, device).build(side)
    return [run().item() for _ in range(calls)]


@cache
def on_cpu(supernet: str) -> list[float]:
    """Of the first three steps, in float64."""
    return losses(supernet, "eager", 3, device="cpu")


@pytest.mark.parametrize("supernet", SIZES)
@pytest.mark.parametrize("side", ["eager", "channels-last"])
def test_float64_matches_cpu(supernet: str, side: str) -> None:
    assert losses(supernet, side, 3) == pytest.approx(on_cpu(supernet), rel=1e-7)


@pytest.mark.parametrize("supernet", SIZES)
@pytest.mark.parametrize(("dtype", "rel"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_lower_precision_starts_near_float64(supernet: str, dtype: str, rel: float) -> None:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        (first,) = losses(supernet, "eager", 1, dtype=dtype)
    assert first == pytest.approx(on_cpu(supernet)[0], rel=rel)


@pytest.mark.parametrize("supernet", SIZES)
@pytest.mark.parametrize("side", ["graph", "graph-channels-last"])
def test_captured_step_matches_step(supernet: str, side: str) -> None:
    captured = losses(supernet, side, 2)  # steps 4 and 5: capture takes three to warm up
    assert captured == pytest.approx(losses(supernet, "eager", 5)[3:], rel=1e-7)
