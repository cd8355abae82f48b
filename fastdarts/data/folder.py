"""Batches from image files, decoded and cropped by torchvision in worker processes.

Notation: N images a batch on this rank, S pixels a side.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import count
from typing import Unpack

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.data.index import ImageIndex
from fastdarts.data.loader import Common, EvalCommon, Evaluation, Loader
from fastdarts.data.prefetch import Stage
from fastdarts.data.processes import by_processes
from fastdarts.data.sampler import BatchSampler
from fastdarts.data.view import View
from fastdarts.data.workers import Request, in_this_process, torchvision_functional


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


def fetch(view: View, requests: Iterable[Request], workers: int, stage: Stage, pin: bool) -> Iterator[Batch]:
    """Answer the requests in their order, with `workers` processes ahead of the consumer, or without any.

    pin  hand the batches over in pinned memory, from which they go to a GPU asynchronously
    Raises DataError, which names the file, for an image that cannot be decoded, InputStopped for a process that cannot be
    started or has ended.
    """
    where = f"{workers} worker processes" if workers else "a thread"
    split = view.stream.name.lower()
    stage.now = f"starting {where}"
    with closing(by_processes(view, requests, workers) if workers else in_this_process(view, requests)) as answers:
        for number in count(1):
            stage.now = f"decoding {split} images in {where}, batch {number} since they started; is the file system alive?"
            if (answer := next(answers, None)) is None:
                return
            request, images = answer
            index = torch.tensor(request.indices)
            copy = torch.empty(images.shape, dtype=torch.uint8, pin_memory=pin).copy_(torch.from_numpy(images))
            rest = torch.tensor(request.labels), index, view.flips(request.epoch, index)
            yield Batch(copy, *(tensor.pin_memory() if pin else tensor for tensor in rest))
