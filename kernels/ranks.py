"""Sums of a BatchNorm over the ranks that share a batch, between two launches of an op. Plain PyTorch.

All ranks hold the same number of values of a BN, call these functions in the same order and get the same bits.
"""

from typing import Protocol

import torch
from torch import Tensor


class Sync(Protocol):
    """The ranks that share a batch (engine.distributed.World). All ranks call `sum` equally often, in the same order."""

    rank: int
    size: int

    def sum(self, flat: Tensor) -> None:
        """Replace a contiguous tensor by its sum over the ranks."""


def statistics(own: Tensor, sync: Sync) -> Tensor:
    """Return mean and biased variance over all ranks' values, from this rank's own: float64 (2, ...)."""
    table = own.new_zeros(sync.size, own.numel())
    table[sync.rank] = own.flatten()
    sync.sum(table)
    means, variances = table.view(sync.size, *own.shape).unbind(1)
    mean = means.mean(0)
    return torch.stack((mean, (variances + (means - mean).square()).mean(0)))


def mean(own: Tensor, sync: Sync) -> Tensor:
    """Return the mean over the ranks, of own's shape and dtype; added up in float64."""
    total = own.to(torch.float64, copy=True, memory_format=torch.contiguous_format).flatten()
    sync.sum(total)
    return (total / sync.size).to(own.dtype).view(own.shape)
