"""The one record that travels from a loader to an objective.

Notation: N images, S pixels a side.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """N images as they were decoded and cropped; everything later (normalise, flip, mask) happens on the device.

    images  uint8 (N, S, S, 3), RGB, NHWC contiguous, not yet flipped
    labels  int64 (N,), class number in the sorted list of class folders
    index   int64 (N,), the image's stable number in the sorted list of all files: the key of its random streams
    flip    bool (N,), True where the image is to be mirrored left to right
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    flip: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device` (asynchronously where the tensors are pinned)."""
        return Batch(*(t.to(device, non_blocking=True) for t in self))
