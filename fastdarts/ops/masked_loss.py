"""Reconstruction loss on masked pixels of a prediction that is a sum of upsampled low-resolution maps.

Notation: N images of H x W pixels, p pixels a patch's side, h_l w_l the resolution of level l, L levels.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts.kernels.arguments import MaskedLoss, MaskedLossResults
from fastdarts.ops import backend as backends
from fastdarts.ops.batch_norm import through_definition
from fastdarts.ops.patch_mask import normalise
from fastdarts.ops.schema import Op

Norm = Literal["l1", "l2"]

OP = Op("masked_loss", MaskedLoss, MaskedLossResults)


class Constants(NamedTuple):
    """The arguments of masked_loss that are not differentiable, in the definition's order."""

    images: Tensor
    flip: Tensor
    mask: Tensor
    mean: list[float]
    std: list[float]
    norm: Norm


def masked_loss(
    levels: Sequence[Tensor],
    bias: Tensor,
    images: Tensor,
    flip: Tensor,
    mask: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    norm: Norm = "l1",
    backend: str = "auto",
) -> Tensor:
    """Return mean |prediction - pixel| (or its square) over the masked pixels' three colours (SimMIM; MAE-NAS section 3.2.2).

    levels     at least one map (N, 3, h_l, w_l), floating point, any strides; the prediction is
               `upsampled_sum(levels, bias, (H, W))`
    bias       (3,), of the levels' dtype (any floating point one under autocast)
    images     uint8 (N, H, W, 3); the target is its normalised, flipped pixels (patch_mask.normalise)
    flip       bool (N,)
    mask       bool (N, H/p, W/p), at least one True: without any the loss is NaN
    mean, std  three numbers each, of pixels in [0, 1]
    norm       "l1" or "l2"
    backend    "auto", "cpu" (C++: float32, float64), "triton" (NVIDIA GPUs: float32, bfloat16, float16) or "definition"

    Returns a scalar of the levels' dtype: sum over masked pixels and colours / (masked pixels * 3). Unmasked pixels do not
    contribute. Differentiable twice in `levels` and `bias`. The fused backends compute loss and gradient in one pass over
    the pixels and store nothing of the images' size. Their results are bitwise reproducible for any number of threads; on a
    GPU, sums are float32 whatever the dtype. Raises ValueError for arguments that do not fit and BackendUnavailable.
    """
    constants = Constants(images, flip, mask, list(mean), list(std), norm)
    _check(levels, bias, constants)
    args = list(levels), bias, *constants
    return backends.run("masked_loss", backend, images.device, backends.arithmetic(levels[0]), *args)


def upsampled_sum(levels: Sequence[Tensor], bias: Tensor, size: tuple[int, int]) -> Tensor:
    """Return sum_l Up(levels[l]) + bias: levels (N, 3, h_l, w_l), bias (3,) -> (N, 3, *size); bilinear, align_corners=False."""
    total = bias[:, None, None]
    for level in levels:
        total = total + F.interpolate(level, size=size, mode="bilinear", align_corners=False)
    return total


def pixel_mask(mask: Tensor, patch_size: int) -> Tensor:
    """Expand bool (N, H/p, W/p) to bool (N, 1, H, W), each patch's value to its p x p pixels."""
    return mask.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)[:, None]


def definition(
    levels: Sequence[Tensor],
    bias: Tensor,
    images: Tensor,
    flip: Tensor,
    mask: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    norm: Norm,
) -> Tensor:
    """masked_loss in plain PyTorch, at any dtype on any device; same arguments."""
    size = (images.shape[1], images.shape[2])
    target = normalise(images, flip, mean=mean, std=std, dtype=levels[0].dtype)
    patch_size = size[0] // mask.shape[1]
    error = upsampled_sum(levels, bias, size) - target
    error = error.abs() if norm == "l1" else error.square()
    terms = mask.sum() * (patch_size**2 * target.shape[1])  # an integer count, whatever the dtype
    return torch.where(pixel_mask(mask, patch_size), error, 0).sum() / terms


@OP.fake
def _fake(a: MaskedLoss) -> MaskedLossResults:
    grad_levels = [torch.empty_like(level, dtype=_summed(level.dtype)) for level in a.levels] if a.need_grad else []
    grad_bias = a.bias.new_empty(3 if a.need_grad else 0, dtype=_summed(a.bias.dtype))
    return MaskedLossResults(a.bias.new_empty(()), grad_levels, grad_bias)


def _summed(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a gradient before the loss' own gradient scales it: half precision would underflow."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


@OP.cuda
def _on_gpu(a: MaskedLoss) -> MaskedLossResults:
    from fastdarts.kernels import masked_loss as kernels  # not above: Triton may be missing

    return kernels.run(a)


class _MaskedLoss(torch.autograd.Function):
    """The registered op, which computes the gradient with the loss; backward scales it."""

    @staticmethod
    def forward(ctx: Any, constants: Constants, bias: Tensor, *levels: Tensor) -> Tensor:
        loss, grad_levels, grad_bias = torch.ops.fastdarts.masked_loss(levels, bias, *constants, True)
        images, flip, mask, *ctx.numbers = constants
        ctx.save_for_backward(images, flip, mask, bias, *levels, grad_bias, *grad_levels)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, flip, mask, *rest = ctx.saved_tensors
        inputs, grads = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        _, *wanted = ctx.needs_input_grad  # of bias and each level
        if torch.is_grad_enabled():
            constants = Constants(images, flip, mask, *ctx.numbers)

            def again(bias: Tensor, *levels: Tensor) -> Tensor:
                return definition(levels, bias, *constants)

            return None, *through_definition("masked_loss", again, inputs, wanted, grad)
        return None, *((g * grad).to(t.dtype) if w else None for g, t, w in zip(grads, inputs, wanted, strict=True))


def _registered(levels: list[Tensor], bias: Tensor, *constants: Any) -> Tensor:
    if torch.is_grad_enabled() and any(t.requires_grad for t in (bias, *levels)):
        return _MaskedLoss.apply(Constants(*constants), bias, *levels)
    return torch.ops.fastdarts.masked_loss(levels, bias, *constants, False)[0]


backends.register(
    "masked_loss",
    backends.Backend("cpu", backends.native_cpu(torch.float32, torch.float64, op="masked_loss"), _registered),
    backends.Backend("triton", backends.triton(torch.float32, torch.bfloat16, torch.float16), _registered),
    backends.Backend("definition", backends.anything, definition),
)


def _check(levels: Sequence[Tensor], bias: Tensor, constants: Constants) -> None:
    """Raise ValueError, saying what was given, unless the arguments are as masked_loss documents them."""
    images, flip, mask, mean, std, norm = constants
    if not levels:
        raise ValueError("levels must contain at least one map (N, 3, h, w), got none")
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        raise ValueError(f"images must be uint8 (N, H, W, 3), got {images.dtype} {tuple(images.shape)}")
    n, h, w, _ = images.shape
    for level in levels:
        fits = level.dim() == 4 and tuple(level.shape[:2]) == (n, 3) and 0 not in level.shape[2:]
        if not fits or not level.is_floating_point():
            raise ValueError(f"levels must be floating point ({n}, 3, h, w), got {level.dtype} {tuple(level.shape)}")
        backends.check_alike("levels", level, levels[0])
    if tuple(bias.shape) != (3,):
        raise ValueError(f"bias must be (3,), got {tuple(bias.shape)}")
    backends.check_alike("bias", bias, levels[0])
    if flip.dtype != torch.bool or tuple(flip.shape) != (n,):
        raise ValueError(f"flip must be {torch.bool} ({n},), got {flip.dtype} {tuple(flip.shape)}")
    rows, cols = mask.shape[1:] if mask.dim() == 3 and 0 not in mask.shape[1:] else (h, w)
    if mask.dtype != torch.bool or tuple(mask.shape) != (n, rows, cols) or h % rows or h // rows * cols != w:
        expected = f"{torch.bool} ({n}, {h}/p, {w}/p) of patches of p x p pixels"
        raise ValueError(f"mask must be {expected}, got {mask.dtype} {tuple(mask.shape)}")
    for name, tensor in {"images": images, "flip": flip, "mask": mask}.items():
        if tensor.device != levels[0].device:
            raise ValueError(f"{name} is on {tensor.device}, the levels are on {levels[0].device}; move it there")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean and std must be three numbers each, std above 0, got {mean} and {std}")
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be l1 or l2, got {norm!r}")
