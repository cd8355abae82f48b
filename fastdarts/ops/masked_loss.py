"""Reconstruction loss on masked pixels of a prediction that is a sum of upsampled low-resolution maps.

Letters: N images, S pixels a side, p pixels a patch's side, h_l w_l the resolution of level l, L levels.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts.ops.patch_mask import normalise

Norm = Literal["l1", "l2"]


def upsampled_sum(levels: Sequence[Tensor], bias: Tensor, size: tuple[int, int]) -> Tensor:
    """sum_l Up(levels[l]) + bias: levels (N, 3, h_l, w_l), bias (3,) -> (N, 3, *size); bilinear, align_corners=False."""
    total = bias[:, None, None]
    for level in levels:
        total = total + F.interpolate(level, size=size, mode="bilinear", align_corners=False)
    return total


def pixel_mask(mask: Tensor, patch_size: int) -> Tensor:
    """bool (N, S/p, S/p) -> bool (N, 1, S, S), each patch's value at its p x p pixels."""
    return mask.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)[:, None]


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
) -> Tensor:
    """Mean |prediction - pixel| (or its square) over the masked pixels' three colours (SimMIM; MAE-NAS section 3.2.2).

    levels  L maps (N, 3, h_l, w_l), floating point; the prediction is `upsampled_sum(levels, bias, (S, S))`
    bias    (3,)
    images  uint8 (N, S, S, 3); the target is its normalised, flipped pixels
    flip    bool (N,)
    mask    bool (N, S/p, S/p), at least one True
    Returns a scalar of the levels' dtype: sum over masked pixels and colours / (masked pixels * 3). Differentiable in
    `levels` and `bias`; unmasked pixels have no part in it.
    """
    size = (images.shape[1], images.shape[2])
    target = normalise(images, flip, mean=mean, std=std, dtype=levels[0].dtype)
    patch_size = size[0] // mask.shape[1]
    error = upsampled_sum(levels, bias, size) - target
    error = error.abs() if norm == "l1" else error.square()
    terms = mask.sum() * (patch_size**2 * target.shape[1])  # counted in whole numbers, whatever the dtype
    return torch.where(pixel_mask(mask, patch_size), error, 0).sum() / terms
