"""Ranks that share a batch, without processes: threads that wait for each other."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from typing import TypeVar

import torch
from torch import Tensor

from tests.ops.exactness import threads

Result = TypeVar("Result")
PATIENCE = 120.0  # seconds that a rank waits for the others


class Rank:
    """An ops.sync.Sync: one of `size` ranks. numbers: how many each sum had."""

    def __init__(self, rank: int, size: int, meeting: Barrier, slots: list[Tensor]) -> None:
        self.rank, self.size, self._meeting, self._slots = rank, size, meeting, slots
        self.numbers: list[int] = []

    def sum(self, flat: Tensor) -> None:
        assert flat.is_contiguous()
        self.numbers.append(flat.numel())
        self._slots[self.rank] = flat.clone()
        self._meeting.wait(PATIENCE)
        total = torch.stack(self._slots).sum(0)
        self._meeting.wait(PATIENCE)
        flat.copy_(total)


def on_ranks(work: Callable[[Rank], Result], size: int = 2, intra_op: int = 1) -> list[Result]:
    """What `work` gives each rank, each of which computes on so many threads of its own."""
    meeting, slots = Barrier(size), [torch.empty(0)] * size
    ranks = [Rank(rank, size, meeting, slots) for rank in range(size)]

    def run(rank: Rank) -> Result:
        try:
            with threads(intra_op):
                return work(rank)
        except BaseException:
            meeting.abort()  # the others wait for nobody
            raise

    with ThreadPoolExecutor(size) as pool:
        running = [pool.submit(run, rank) for rank in ranks]
    failed = [error for f in running if (error := f.exception())]
    for error in sorted(failed, key=lambda e: isinstance(e, BrokenBarrierError)):  # those that only waited last
        raise error
    return [f.result() for f in running]


class Twins:
    """An ops.sync.Sync among `size` ranks that all compute what this one does. broken: what the next sum raises."""

    rank = 0

    def __init__(self, size: int = 2) -> None:
        self.size, self.sums = size, 0
        self.broken: BaseException | None = None

    def sum(self, flat: Tensor) -> None:
        if self.broken is not None:
            raise self.broken
        self.sums += 1
        if flat.dim() == 2 and flat.shape[0] == self.size:  # a table with a row a rank
            flat.copy_(flat[self.rank].expand_as(flat))
        else:
            flat.mul_(self.size)
