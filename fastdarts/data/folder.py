"""Batches from image files, decoded and cropped by torchvision in worker processes.

Letters: N images a batch on this rank, S pixels a side.
"""

from collections.abc import Iterator
from itertools import count
from typing import Unpack

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.data.ahead import STALLED, Stage, ahead
from fastdarts.data.crop import SCALE
from fastdarts.data.index import ImageIndex
from fastdarts.data.loader import Common, Loader
from fastdarts.data.sampler import BatchSampler
from fastdarts.data.view import View
from fastdarts.data.workers import Request, fetch, torchvision_functional
from fastdarts.ops.philox import Stream


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


class EvalLoader:
    """One pass over a split in the order of the indices: short side to S * 256 / 224, centre crop, no flip.

    Each `for` starts anew. Batches hold `batch_size` images over all ranks, of which rank r gets r, r + world_size,
    ...; the last one may be smaller, and is left out on a rank that has no image of it.
    """

    def __init__(
        self,
        index: ImageIndex,
        indices: Tensor,
        *,
        batch_size: int,
        image_size: int,
        workers: int,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world_size: int = 1,
        timeout: float = STALLED,
    ) -> None:
        """Arguments as FolderLoader's. Raises DataError without torchvision."""
        torchvision_functional()
        batches = [part[rank::world_size] for part in indices.sort().values.split(batch_size)]
        self._batches = [part for part in batches if len(part)]
        self._index, self._workers, self._device, self._timeout = index, workers, torch.device(device), timeout
        self._view = View(image_size, 0, Stream.EVAL, False, SCALE)

    def __len__(self) -> int:
        """Batches of a pass on this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Raises DataError, which names the file, if an image cannot be decoded, and InputStopped if no batch comes."""
        requests = (Request.of(self._index, indices, 0) for indices in self._batches)
        stage = Stage()
        batches = fetch(self._view, requests, self._workers, stage, pin=self._device.type == "cuda")
        return ahead(batches, self._device, stage, self._timeout)
