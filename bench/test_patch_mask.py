"""uint8 images to normalised, mirrored and masked ones: the definition and each faster backend that is here."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.workload import Workload, resident_batch
from fastdarts.objectives import IMAGENET_MEAN, IMAGENET_STD
from fastdarts.ops import backend as backends
from fastdarts.ops.patch_mask import num_masked, patch_mask

PATCH = 8


@pytest.mark.parametrize("backend", ["cpu", "definition"])
def test_patch_mask(benchmark: BenchmarkFixture, full_size: bool, backend: str) -> None:
    if why := backends.refusals("patch_mask", torch.device("cpu"), torch.float32).get(backend):
        pytest.skip(why)
    workload = Workload("mae-imagenet", 64 if full_size else 2, 224 if full_size else 32, 1)
    batch = resident_batch(workload, 1, seed=1)
    step, fill = torch.zeros(1, dtype=torch.int64), torch.zeros(3)
    masked = num_masked(0.5, (workload.image_size // PATCH) ** 2)
    benchmark.extra_info.update(batch=workload.batch, image_size=workload.image_size, device="cpu", backend=backend)

    def run() -> None:
        patch_mask(
            batch.images,
            batch.index,
            step,
            batch.flip,
            fill,
            seed=0,
            stream=0,
            patch_size=PATCH,
            num_masked=masked,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            backend=backend,
        )

    benchmark.pedantic(run, rounds=20, warmup_rounds=2)
