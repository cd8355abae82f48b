"""Loader for image files, decoded and cropped with torchvision in worker processes.

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
from fastdarts.data.prefetch import Activity
from fastdarts.data.processes import by_processes
from fastdarts.data.sampler import BatchSampler
from fastdarts.data.view import View
from fastdarts.data.workers import Request, in_this_process, torchvision_functional


class FolderLoader(Loader):
    """torchvision loader: Pillow decodes the whole image, torchvision crops and resizes the box."""

    def __init__(self, index: ImageIndex, indices: Tensor, *, workers: int, **common: Unpack[Common]) -> None:
        """Store the arguments; workers start at the first next().

        indices  int64, images of the split
        workers  number of processes; 0 decodes in a thread of this process
        common   see data.loader.Common
        Raises DataError without torchvision, or if the batch size does not fit the split or world_size.
        """
        torchvision_functional()
        super().__init__(indices, **common)
        self._index, self._workers = index, workers

    def _produce(self, number: int, stage: Activity) -> Iterator[Batch]:
        return _decoded(self._index, self.sampler, self.view, self._workers, self.device, number, stage)


def _decoded(
    index: ImageIndex, sampler: BatchSampler, view: View, workers: int, device: torch.device, number: int, stage: Activity
) -> Iterator[Batch]:
    """Yield the batches from `number` on."""

    def request(number: int) -> Request:
        epoch, indices = sampler.batch(number)
        return Request.of(index, indices, epoch)

    return fetch(view, map(request, count(number)), workers, stage, pin=device.type == "cuda")


class EvalLoader(Evaluation):
    """Evaluation pass with torchvision, in worker processes."""

    def __init__(self, index: ImageIndex, indices: Tensor, *, workers: int, **common: Unpack[EvalCommon]) -> None:
        """Take FolderLoader's arguments. Raises DataError without torchvision."""
        torchvision_functional()
        super().__init__(indices, **common)
        self._index, self._workers = index, workers

    def _produce(self, stage: Activity) -> Iterator[Batch]:
        requests = (Request.of(self._index, indices, 0) for indices in self.batches)
        return fetch(self.view, requests, self._workers, stage, pin=self.device.type == "cuda")


def fetch(view: View, requests: Iterable[Request], workers: int, stage: Activity, pin: bool) -> Iterator[Batch]:
    """Answer the requests in order, with `workers` processes running ahead of the consumer, or in this process for 0.

    pin  return the batches in pinned memory, for asynchronous copies to a GPU
    Raises DataError, which names the file, if an image cannot be decoded, and InputStopped if a process cannot be started
    or has ended.
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
