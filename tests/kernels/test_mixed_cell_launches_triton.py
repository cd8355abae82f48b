"""The Triton kernels of the launches that CUDA has too, in the interpreter.

They leave in memory what tests/cuda asks of the CUDA kernels.
"""

import pytest
import torch

from tests.cuda.checks import CHECKS, launches
from tests.cuda.launches import CALLS
from tests.cuda.with_triton import start_triton

SMALL = ("24 channels", "mean without BN", "running statistics")


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kernel", CHECKS)
def test_launches_match_cuda_harness(kernel: str, name: str) -> None:
    for memory, one, given in launches(kernel, CALLS[name], torch.float32):
        left = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in given.items()}
        start_triton(memory, one, left)
        assert CHECKS[kernel].check(memory, one, left)
