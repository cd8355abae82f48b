"""The CUDA kernels on a GPU: patch_mask's bits; each launch of mixed_cell, in CUDA and in Triton, against float64."""

import pytest
import torch
from torch import Tensor

from fastdarts import native
from fastdarts.kernels import mixed_cell_cuda
from fastdarts.kernels.mixed_cell_launches import Launch
from fastdarts.ops.patch_mask import definition
from tests.cuda.checks import CHECKS, launches, same_bits
from tests.cuda.launches import CALLS, Memory
from tests.cuda.with_triton import start_triton
from tests.ops.cells import CellCall

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def start_cuda(memory: Memory, one: Launch, given: dict[str, Tensor | int]) -> None:
    if why := mixed_cell_cuda.refusal(one.kernel, memory.dtype, given):
        pytest.skip(why)
    mixed_cell_cuda.launch(one.kernel, memory.dtype, one.programs, given["p_saved"].device, given)


STARTS = {"cuda": start_cuda, "triton": start_triton}


def after(backend: str, memory: Memory, one: Launch, given: dict[str, Tensor | int]) -> dict[str, Tensor]:
    """What a launch leaves of copies of the tensors, on the CPU."""
    there = {name: value.cuda() if isinstance(value, Tensor) else value for name, value in given.items()}
    STARTS[backend](memory, one, there)
    torch.cuda.synchronize()
    return {name: value.cpu() for name, value in there.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kernel", CHECKS)
@pytest.mark.parametrize("backend", STARTS)
def test_launches_match_triton_bitwise(backend: str, kernel: str, call: CellCall, dtype: torch.dtype) -> None:
    for memory, one, given in launches(kernel, call, dtype):
        left, again = (after(backend, memory, one, given) for _ in range(2))
        assert all(same_bits(again[name], left[name]) for name in left)
        assert CHECKS[kernel].check(memory, one, left)


@pytest.mark.parametrize("name", ["odd sides", "mean without BN"])
@pytest.mark.parametrize("kernel", mixed_cell_cuda.MIXING)
def test_float32_mixing_weights_are_supported(kernel: str, name: str) -> None:
    """As under autocast. Widened they are the same numbers, so that the same bits come out."""
    for memory, one, given in launches(kernel, CALLS[name], torch.bfloat16):
        wide = given | {mix: given[mix].float() for mix in ("p_ops", "p_edges")}
        narrow, left = (after("cuda", memory, one, each) for each in (given, wide))
        assert all(same_bits(left[written], narrow[written]) for written in ("p_work", "p_grad_inputs0", "p_grad_inputs1"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(3, 8, 12, 4, 2), (2, 15, 35, 5, 0), (64, 32, 32, 4, 39), (8, 224, 224, 8, 588)], ids=str)
def test_patch_mask_is_bitwise_definition(size: tuple[int, ...], dtype: torch.dtype) -> None:
    if why := native.without_cuda():
        pytest.skip(why)
    N, H, W, patch, masked = size
    images = torch.randint(256, (N, H, W, 3), dtype=torch.uint8, device="cuda")
    index, step = torch.randint(2**32, (N,), device="cuda"), torch.tensor([2**32 - 7], device="cuda")
    flip, fill = torch.rand(N, device="cuda") < 0.5, torch.randn(3, device="cuda").to(dtype)
    args = [images, index, step, flip, fill, -3, 2, patch, masked, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]
    got, want = torch.ops.fastdarts.patch_mask_cuda(*args), definition(*args)
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[0], want[0])
    assert got[0].stride() == want[0].stride()
