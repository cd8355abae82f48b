"""Batches from image files, decoded and cropped by torchvision in worker processes.

Letters: N images a batch on this rank, S pixels a side.
"""

from collections.abc import Iterator
from itertools import count
from typing import Unpack

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.data.index import ImageIndex
from fastdarts.data.loader import Common, EvalCommon, Evaluation, Loader
from fastdarts.data.prefetch import Stage
from fastdarts.data.sampler import BatchSampler
from fastdarts.data.view import View
from fastdarts.data.workers import Request, fetch, torchvision_functional


class FolderLoader(Loader):
    """The torchvision route: Pillow decodes the whole image, torchvision cuts the box out and resizes it."""

    def __init__(self, index: ImageIndex, indices: Tensor, *, workers: int, **common: Unpack[Common]) -> None:
        """Workers start at the first next().

        indices  int64, the split's images
        workers  processes; 0 decodes in a thread of this one
        common   as all loaders', data.loader.Common
        Raises DataError without torchvision, or for a batch that does not fit the split or world_size.
        """
        torchvision_functional()
        super().__init__(indices, **common)
        self._index, self._workers = index, workers

    def _produce(self, number: int, stage: Stage) -> Iterator[Batch]:
        return _decoded(self._index, self.sampler, self.view, self._workers, self.device, number, stage)


def _decoded(
    index: ImageIndex, sampler: BatchSampler, view: View, workers: int, device: torch.device, number: int, stage: Stage
) -> Iterator[Batch]:
    """Batches from `number` on."""

    def request(number: int) -> Request:
        epoch, indices = sampler.batch(number)
        return Request.of(index, indices, epoch)

    return fetch(view, map(request, count(number)), workers, stage, pin=device.type == "cuda")


class EvalLoader(Evaluation):
    """The evaluation pass by torchvision, in worker processes."""

    def __init__(self, index: ImageIndex, indices: Tensor, *, workers: int, **common: Unpack[EvalCommon]) -> None:
        """Arguments as FolderLoader's. Raises DataError without torchvision."""
        torchvision_functional()
        super().__init__(indices, **common)
        self._index, self._workers = index, workers

    def _produce(self, stage: Stage) -> Iterator[Batch]:
        requests = (Request.of(self._index, indices, 0) for indices in self.batches)
        return fetch(self.view, requests, self._workers, stage, pin=self.device.type == "cuda")
