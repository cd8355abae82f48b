"""BatchNorm's sums over the ranks that share a batch, between two launches of a kernel's op. Plain PyTorch.

Each rank has as many values of a BN as every other. All ranks call these in the same order, and all get the same bits.
"""

import torch
from torch import Tensor

from fastdarts.ops.batch_norm import Sync


def statistics(own: Tensor, sync: Sync) -> Tensor:
    """Mean and biased variance of the values of all ranks, from those of this rank's: float64 (2, ...)."""
    table = own.new_zeros(sync.size, own.numel())
    table[sync.rank] = own.flatten()
    sync.sum(table)
    means, variances = table.view(sync.size, *own.shape).unbind(1)
    mean = means.mean(0)
    return torch.stack((mean, (variances + (means - mean).square()).mean(0)))


def mean(own: Tensor, sync: Sync) -> Tensor:
    """The mean over the ranks, of own's shape and dtype; added up in float64."""
    total = own.to(torch.float64, copy=True, memory_format=torch.contiguous_format).flatten()
    sync.sum(total)
    return (total / sync.size).to(own.dtype).view(own.shape)
