"""Launches of mixed_cell's CUDA kernels (csrc/cuda), where the native module has them.

A CUDA kernel replaces the Triton kernel of the same name: same arguments, same table, same memory. launch.json chooses between
the two.
"""

from collections.abc import Mapping
from typing import Any

import torch

from fastdarts import native
from fastdarts.kernels.rows import CUDA_WIDEST

PAIR = 8  # bytes of two numbers that `state_gradient` reads at once, where they are float32
MIXING = "pool_gradient", "state_gradient"  # they read the weights of candidates and edges


def refusal(kernel: str, dtype: torch.dtype, given: Mapping[str, Any]) -> str | None:
    """Why the CUDA kernels cannot serve a launch with these arguments on tensors of this dtype, or None."""
    if why := native.without_cuda():
        return why
    if kernel not in native.required().cuda_launches():
        return f"{kernel} is written in Triton only"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the CUDA kernels are compiled for float32, float16 and bfloat16, not for {str(dtype).removeprefix('torch.')}"
    return unfit(kernel, given)


def unfit(kernel: str, given: Mapping[str, Any]) -> str | None:
    """Why the CUDA kernel of this name does not take these arguments, or None."""
    if kernel == "separable" and given["CQ"] > CUDA_WIDEST:
        return f"the CUDA kernel separable takes at most {CUDA_WIDEST} channels, got {given['CQ']}"
    if kernel in MIXING and _mix(given) not in ({given["p_saved"].dtype}, {torch.float32}):
        return f"the CUDA kernel {kernel} takes weights of candidates and edges of the inputs' dtype or all float32"
    if kernel == "state_gradient":
        if given["CHOSEN"]:
            return "the CUDA kernel state_gradient does not take random channels"
        if given["DENSE"]:
            return "the CUDA kernel state_gradient does not go through dense convolutions"
        if given["pixels"] != given["m"]:
            return "the CUDA kernel state_gradient does not take edges with stride 2"
        if any(given[name].data_ptr() % PAIR for name in ("p_inputs0", "p_inputs1", "p_inputs2", "p_inputs3", "p_grad")):
            return f"the CUDA kernel state_gradient reads pairs: inputs and gradient must lie at multiples of {PAIR} bytes"
    return None


def _mix(given: Mapping[str, Any]) -> set[torch.dtype]:
    """Dtypes of the weights of candidates and edges: under autocast float32 (or as given), else the inputs'."""
    return {given["p_ops"].dtype, given["p_edges"].dtype}


def arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """A Triton kernel's arguments as the CUDA kernels name them: the tensors of a tuple one by one."""
    tuples = {name: value for name, value in given.items() if isinstance(value, tuple)}
    return {**given, **{f"{name}{i}": one for name, value in tuples.items() for i, one in enumerate(value)}}


def launch(kernel: str, dtype: torch.dtype, programs: int, device: torch.device, given: Mapping[str, Any]) -> None:
    """Start the CUDA kernel on the device's current stream.

    programs  the size of the Triton launch's grid
    given     the Triton kernel's arguments by name, as of `arguments`; those that the CUDA kernel does not have are ignored
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    wide = {"WIDE_MIX": _mix(given) == {torch.float32}}
    native.required().cuda_launch(kernel, str(dtype).removeprefix("torch."), programs, index, {**given, **wide})
