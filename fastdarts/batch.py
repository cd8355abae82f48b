"""Batch of images, passed from a loader to an objective.

Notation: N images, S pixels a side.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """N decoded and cropped images; later processing (normalise, flip, mask) happens on the device.

    images  uint8 (N, S, S, 3), RGB, NHWC contiguous, not yet flipped
    labels  int64 (N,), position of the class in the sorted list of class folders
    index   int64 (N,), stable image number in the sorted list of all files: key of its random streams
    flip    bool (N,), True for images to flip horizontally
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    flip: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device` (asynchronous copies of pinned tensors)."""
        return Batch(*(t.to(device, non_blocking=True) for t in self))
