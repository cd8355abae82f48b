"""Launches of mixed_cell's CUDA kernels (csrc/cuda), if the native module has them.

A CUDA kernel replaces the Triton kernel of the same name: same arguments, same table, same memory. launch.json chooses between
the two.
"""

from collections.abc import Mapping
from typing import Any

import torch

from fastdarts import native
from fastdarts.kernels.mixed_cell_launches import TAPS
from fastdarts.kernels.rows import CUDA_WIDEST

PAIR = 8  # bytes of two numbers that `state_gradient` reads at once, for float32
DEPTHWISE = "separable", "state_gradient", "tap_gradient"
MIXING = "pool_gradient", "state_gradient"  # kernels that read the weights of candidates and edges


def refusal(kernel: str, dtype: torch.dtype, args: Mapping[str, Any]) -> str | None:
    """Return why the CUDA kernels cannot run a launch with these arguments on tensors of this dtype, or None."""
    if why := native.without_cuda():
        return why
    if kernel not in native.required().cuda_launches():
        return f"{kernel} is written in Triton only"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the CUDA kernels are compiled for float32, float16 and bfloat16, not for {str(dtype).removeprefix('torch.')}"
    return unfit(kernel, args)


def unfit(kernel: str, args: Mapping[str, Any]) -> str | None:
    """Return why the CUDA kernel of this name does not take these arguments, or None."""
    if kernel == "separable" and args["CQ"] > CUDA_WIDEST:
        return f"the CUDA kernel separable supports at most {CUDA_WIDEST} channels, got {args['CQ']}"
    if kernel in DEPTHWISE and args["LARGEST"] > TAPS:
        return f"the CUDA kernel {kernel} does not support kernels of {args['LARGEST']} rows"
    if kernel in ("separable", "tap_gradient") and args["AFFINE"] and args["SECOND"]:
        return f"the CUDA kernel {kernel} does not support affine BatchNorms between two halves"
    if kernel == "pool_gradient" and args["PLAIN_MAX"]:
        return "the CUDA kernel pool_gradient does not support maxima without BatchNorm"
    if kernel in MIXING and args["WEIGHTED"] == 2:
        return f"the CUDA kernel {kernel} does not support edge weights of each image"
    if kernel in MIXING and _mix(args) not in ({args["p_saved"].dtype}, {torch.float32}):
        return f"the CUDA kernel {kernel} supports weights of candidates and edges in the inputs' dtype or all in float32"
    if kernel == "state_gradient":
        if args["CHOSEN"]:
            return "the CUDA kernel state_gradient does not support random channels"
        if args["DENSE"]:
            return "the CUDA kernel state_gradient does not support dense convolutions"
        if args["pixels"] != args["m"]:
            return "the CUDA kernel state_gradient does not support edges with stride 2"
        if any(args[name].data_ptr() % PAIR for name in ("p_inputs0", "p_inputs1", "p_inputs2", "p_inputs3", "p_grad")):
            return f"the CUDA kernel state_gradient reads pairs: inputs and gradient must be aligned to {PAIR} bytes"
    return None


def _mix(args: Mapping[str, Any]) -> set[torch.dtype]:
    """Return the dtypes of the weights of candidates and edges: under autocast float32 (or as given), else the inputs'."""
    return {args["p_ops"].dtype, args["p_edges"].dtype}


def arguments(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Triton kernel's arguments as the CUDA kernels name them: the tensors of a tuple one by one."""
    tuples = {name: value for name, value in args.items() if isinstance(value, tuple)}
    return {**args, **{f"{name}{i}": one for name, value in tuples.items() for i, one in enumerate(value)}}


def launch(kernel: str, dtype: torch.dtype, programs: int, device: torch.device, args: Mapping[str, Any]) -> None:
    """Launch the CUDA kernel on the device's current stream.

    programs  the size of the Triton launch's grid
    args      the Triton kernel's arguments by name, as of `arguments`; those unknown to the CUDA kernel are ignored
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    wide = {"WIDE_MIX": _mix(args) == {torch.float32}}
    native.required().cuda_launch(kernel, str(dtype).removeprefix("torch."), programs, index, {**args, **wide})
