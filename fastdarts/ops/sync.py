"""The ranks that share a batch, for synchronised BatchNorm, and how a registered op is told of them: by a number."""

from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class Sync(Protocol):
    """The ranks that share a batch (engine.distributed.World). All call `sum` equally often, in the same order."""

    rank: int
    size: int

    def sum(self, flat: Tensor) -> None:
        """Replace a contiguous tensor by its sum over the ranks."""


_given: WeakValueDictionary[int, Sync] = WeakValueDictionary()


def handle(sync: Sync | None) -> int:
    """What the argument `sync` of a registered op is: 0 for None, else a number that is good as long as `sync` lives."""
    if sync is None:
        return 0
    _given[id(sync)] = sync
    return id(sync)


def ranks_of(number: int) -> Sync | None:
    """Whose handle that is. Raises ValueError for one that has ended."""
    if number and number not in _given:
        raise ValueError(f"sync = {number} is the handle of no ranks, or they have ended")
    return _given[number] if number else None


torch.library.define("fastdarts::over_ranks", "(Tensor row, bool apart, int sync) -> (Tensor total, int ranks)")


@torch.library.impl("fastdarts::over_ranks", "CPU")
def _over_ranks(row: Tensor, apart: bool, sync: int) -> tuple[Tensor, int]:
    """What the C++ kernels call (csrc/cpu/ranks.cpp), with this rank's row of numbers.

    Returns the rows of all ranks under each other (apart) or their sum, and how many ranks there are.
    """
    ranks = ranks_of(sync)
    if ranks is None:
        raise ValueError("sync = 0: there are no ranks to sum over")
    total = row.new_zeros(ranks.size if apart else 1, row.numel())
    total[ranks.rank if apart else 0] = row
    ranks.sum(total)
    return total, ranks.size
