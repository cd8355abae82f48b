"""What bench/gpu.sh times on a GPU runs there. Each case is compiled here, so that no time limit of the benches pays for it."""

import math

import pytest

from bench.gpu_cases import DTYPES, cases
from bench.workload import OURS, Workload

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("small", [True, False])
def test_cases_run(small: bool, dtype: str) -> None:
    assert all(case.costs and case.run() is not None for case in cases(DTYPES[dtype], small=small))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("supernet", "batch", "side", "k"), [("cifar", 64, 32, 1), ("mae-imagenet", 256, 224, 2)])
def test_step_is_replayed_as_cuda_graphs(supernet: str, batch: int, side: int, k: int, dtype: str) -> None:
    """A step of our side, replayed as CUDA graphs."""
    step = Workload(supernet, batch, side, k, dtype, "cuda").build(OURS)
    assert math.isfinite(step().item()) and step.replay == "CUDA graphs"
