"""The common interface of all objectives of a search."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastdarts.batch import Batch
from fastdarts.spaces import Kind
from fastdarts.supernet import CellWeights, Network

Colour = tuple[float, float, float]
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of pixels in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)

Weights = Mapping[Kind, CellWeights]


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Disable autocast for the device inside the context: a loss is computed in the parameters' dtype."""
    known = torch.amp.is_autocast_available(device.type)  # False for the meta device
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


class Objective(nn.Module):
    """A loss of a supernet on a batch, with its head, whose parameters are trained with the weights.

    `needs_labels` says whether the objective reads Batch.labels.
    """

    needs_labels: bool

    def forward(self, supernet: Network, weights: Weights, batch: Batch, step: Tensor, stream: int) -> Tensor:
        """Return the scalar loss, in the parameters' dtype even under autocast; differentiable in parameters, `weights`, head.

        step: int64 tensor of one element on the batch's device; stream: a philox.Stream. Both key the randomness.
        """
        raise NotImplementedError

    def evaluate(self, supernet: Network, weights: Weights, batch: Batch) -> dict[str, Tensor]:
        """Return named scalars, each a mean over the batch's images, `loss` among them. Each call uses the same randomness."""
        raise NotImplementedError


class Reconstructing(Objective):
    """An objective with an image output, for visual inspection."""

    def reconstruct(self, supernet: Network, weights: Weights, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the images that the supernet saw, their reconstruction (visible pixels kept), and the originals.

        Each float (N, 3, S, S) of pixels in [0, 1], not clamped; the same randomness as in `evaluate`.
        """
        raise NotImplementedError


def first_step(batch: Batch) -> Tensor:
    """Return the step that keys an evaluation's randomness: int64 zero of one element on the batch's device."""
    return torch.zeros(1, dtype=torch.int64, device=batch.index.device)
