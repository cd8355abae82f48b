"""Process groups for synchronised BatchNorm, passed to custom ops as an integer handle."""

from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fastdarts.kernels.ranks import Sync

_given: WeakValueDictionary[int, Sync] = WeakValueDictionary()


def handle(sync: Sync | None) -> int:
    """Return the argument `sync` of a registered op: 0 for None, else a number that is valid as long as `sync` lives."""
    if sync is None:
        return 0
    _given[id(sync)] = sync
    return id(sync)


def ranks_of(number: int) -> Sync | None:
    """Return the ranks of a handle. Raises ValueError for one that is no longer valid."""
    if number and number not in _given:
        raise ValueError(f"sync = {number} is not a handle of process groups, or they were destroyed")
    return _given[number] if number else None


torch.library.define("fastdarts::over_ranks", "(Tensor row, bool apart, int sync) -> (Tensor total, int ranks)")


@torch.library.impl("fastdarts::over_ranks", "CPU")
def _over_ranks(row: Tensor, apart: bool, sync: int) -> tuple[Tensor, int]:
    """Exchange this rank's row of numbers; called by the C++ kernels (csrc/cpu/ranks.cpp).

    Returns the rows of all ranks stacked (apart) or their sum, and the number of ranks.
    """
    ranks = ranks_of(sync)
    if ranks is None:
        raise ValueError("sync = 0: there are no ranks to sum over")
    total = row.new_zeros(ranks.size if apart else 1, row.numel())
    total[ranks.rank if apart else 0] = row
    ranks.sum(total)
    return total, ranks.size
