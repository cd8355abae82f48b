"""Decode every file once before a search, so that a bad one is named then and not hours later."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from fastdarts.data.decode import fault
from fastdarts.data.index import ImageIndex

CHUNK = 64  # files a thread takes at a time


def verify(
    index: ImageIndex, indices: Tensor, workers: int, progress: Callable[[int, int], None] | None = None
) -> tuple[Tensor, list[tuple[str, str]]]:
    """Open and decode the files of `indices` to their ends, in `workers` threads (Pillow decodes outside the GIL).

    indices   int64 (N,)
    progress  called now and then with (files done, N)
    Returns (good, bad): the indices that decode, int64, in the order given; (relative name, reason) of the others.
    Raises DataError for a file that is there but may not be read, or is gone.
    A JPEG that lacks nothing but its end marker may count as good: all its pixels are there.
    """

    def faults(chunk: Tensor) -> list[str | None]:
        return [fault(index.path(i)) for i in chunk.tolist()]

    reasons: list[str | None] = []
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        for chunk in pool.map(faults, indices.split(CHUNK)):
            reasons += chunk
            if progress is not None:
                progress(len(reasons), len(indices))
    finally:
        pool.shutdown(cancel_futures=True)
    good = torch.tensor([reason is None for reason in reasons], dtype=torch.bool)
    bad = [(index.files[i], reason) for i, reason in zip(indices.tolist(), reasons, strict=True) if reason is not None]
    return indices[good], bad
