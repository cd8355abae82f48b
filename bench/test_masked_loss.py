"""Loss on masked pixels and its gradient by the levels: the definition and each faster backend that is here."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.workload import Workload, resident_batch
from fastdarts.objectives import IMAGENET_MEAN, IMAGENET_STD
from fastdarts.ops import backend as backends
from fastdarts.ops.masked_loss import Norm, masked_loss

PATCH = 8
SHRINK = 8, 16, 32  # the stages of the ImageNet supernet


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("backend", ["cpu", "definition"])
def test_masked_loss(benchmark: BenchmarkFixture, full_size: bool, backend: str, norm: Norm) -> None:
    if why := backends.refusals("masked_loss", torch.device("cpu"), torch.float32).get(backend):
        pytest.skip(why)
    workload = Workload("mae-imagenet", 16 if full_size else 2, 224 if full_size else 32, 1)
    batch = resident_batch(workload, 1, seed=1)
    n, side = workload.batch, workload.image_size
    draw = torch.Generator().manual_seed(1)
    levels = [
        torch.randn(n, 3, side // s, side // s, generator=draw).contiguous(memory_format=torch.channels_last).requires_grad_()
        for s in SHRINK
    ]
    bias = torch.zeros(3, requires_grad=True)
    mask = torch.rand(n, side // PATCH, side // PATCH, generator=draw) < 0.5
    benchmark.extra_info.update(batch=n, image_size=side, device="cpu", backend=backend, norm=norm)

    def run() -> None:
        loss = masked_loss(
            levels,
            bias,
            batch.images,
            batch.flip,
            mask,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            norm=norm,
            backend=backend,
        )
        torch.autograd.grad(loss, [bias, *levels])

    benchmark.pedantic(run, rounds=20, warmup_rounds=2)
