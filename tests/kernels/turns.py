"""Ranks that are threads and take turns: Triton's interpreter cannot run two kernels at once."""

from collections.abc import Callable
from threading import Barrier, Lock, Thread
from typing import Any

import torch
from torch import Tensor

from tests.ops.exactness import Named

PATIENCE = 600.0  # seconds until another rank comes to the same sum


class Turns:
    """A rank's Sync. The others run while it waits in `sum`.

    sums  the shapes of what it summed, in order
    """

    def __init__(self, rank: int, size: int, turn: Lock, meeting: Barrier, given: dict[tuple[int, int], Tensor]) -> None:
        self.rank, self.size, self.sums = rank, size, list[torch.Size]()
        self._turn, self._meeting, self._given = turn, meeting, given

    def sum(self, flat: Tensor) -> None:
        assert flat.is_contiguous() and flat.isfinite().all()
        call = len(self.sums)
        self.sums.append(flat.shape)
        self._given[call, self.rank] = flat.clone()
        self._turn.release()
        try:
            self._meeting.wait(PATIENCE)
        finally:
            self._turn.acquire()
        given = [self._given[call, rank] for rank in range(self.size)]
        assert len({(t.shape, t.dtype) for t in given}) == 1
        flat.copy_(torch.stack(given).sum(0))


def on_ranks(size: int, work: Callable[[Turns], Named]) -> tuple[list[Named], list[Turns]]:
    """What each rank's work gives, and the ranks. Raises what the first rank raised that did not just wait for another."""
    turn, meeting, given = Lock(), Barrier(size), {}
    ranks = [Turns(rank, size, turn, meeting, given) for rank in range(size)]
    results: list[Any] = [None] * size
    errors: list[Exception] = []

    def run(rank: Turns) -> None:
        with turn:
            try:
                results[rank.rank] = work(rank)
            except Exception as error:
                errors.append(error)
                meeting.abort()

    threads = [Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert len({tuple(rank.sums) for rank in ranks}) == 1
    return results, ranks


def share(t: Tensor, rank: Turns) -> Tensor:
    """This rank's images of a batch, in the batch's memory format."""
    part = t.detach().chunk(rank.size)[rank.rank]
    last = t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
    return part.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def whole(results: list[Named], by_image: Callable[[str], bool], alike: tuple[str, ...] = ("mean", "var")) -> Named:
    """The ranks' results as one process has them for the whole batch.

    by_image  which tensors have a row for each image: they are joined. Those that are `alike` must be so to the bit, and the
              others, gradients of a mean over a rank's images, are added
    """
    joined = {}
    for name, first in results[0].items():
        each = [result[name] for result in results]
        if name in alike:
            assert all(torch.equal(first, t) for t in each), name
            joined[name] = first
        else:
            joined[name] = torch.cat(each) if by_image(name) else torch.stack(each).sum(0)
    return joined
