"""Cutout (DeVries and Taylor, 2017): the pixels that it hides.

Notation: N images, S pixels a side.
"""

import torch
from torch import Tensor


def cutout_mask(words: Tensor, size: int, side: int) -> Tensor:
    """Return the pixels of each image that cutout hides, bool (N, 1, S, S), from random words, int64 (N, 2).

    A square of `side` pixels around a pixel drawn uniformly, clipped at the border (an odd side loses a pixel, as DARTS').
    """
    centre = words * size >> 32  # row and column
    distance = torch.arange(size, device=words.device) - centre[:, :, None]
    near = (distance >= -(side // 2)) & (distance < side // 2)  # (N, 2, S)
    return (near[:, 0, :, None] & near[:, 1, None, :])[:, None]
