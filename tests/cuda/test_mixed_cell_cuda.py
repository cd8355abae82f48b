"""mixed_cell's CUDA kernels as plain C++ under the sanitizers, launch by launch, against the same mathematics in float64.

Launches in float32 run twice, a block's threads in both orders: a phase in which a thread reads what another writes shows.
"""

from pathlib import Path

import pytest
import torch

from fastdarts.kernels import mixed_cell_cuda
from tests.cuda.checks import CHECKS, launches, same_bits
from tests.cuda.harness import run
from tests.cuda.launches import CALLS
from tests.ops.cells import CellCall


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kernel", CHECKS)
def test_launches_match_triton_bitwise(kernel: str, call: CellCall, dtype: torch.dtype, tmp_path: Path) -> None:
    for memory, one, given in launches(kernel, call, dtype):
        left = run(tmp_path, kernel, dtype, one.programs, given)
        if dtype == torch.float32:
            for name, again in run(tmp_path, kernel, dtype, one.programs, given, order="backward").items():
                assert same_bits(again, left[name]), name
        assert CHECKS[kernel].check(memory, one, left)


@pytest.mark.parametrize("name", ["odd sides", "mean without BN"])
@pytest.mark.parametrize("kernel", mixed_cell_cuda.MIXING)
def test_float32_mixing_weights_are_supported(kernel: str, name: str, tmp_path: Path) -> None:
    """As under autocast. Widened they are the same numbers, so that the same bits come out."""
    for _, one, given in launches(kernel, CALLS[name], torch.float16):
        wide = given | {mix: given[mix].float() for mix in ("p_ops", "p_edges")} | {"WIDE_MIX": 1}
        narrow, left = (run(tmp_path, kernel, torch.float16, one.programs, each) for each in (given, wide))
        assert all(same_bits(left[written], narrow[written]) for written in ("p_work", "p_grad_inputs0", "p_grad_inputs1"))
