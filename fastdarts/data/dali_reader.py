"""Batches whose files DALI reads itself, and whose boxes it draws.

Notation: N images a batch on this rank, S pixels a side.
"""

import logging
from collections.abc import Iterator
from itertools import count
from typing import Any, Unpack

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.data.crop import LONGEST, RATIO, short_side
from fastdarts.data.dali import PREFETCH, DaliLoader, cut, explained, labelled, outputs, pipeline, resized
from fastdarts.data.errors import DataError
from fastdarts.data.index import ImageIndex
from fastdarts.data.loader import Common
from fastdarts.data.prefetch import Stage
from fastdarts.data.sampler import BatchSampler
from fastdarts.data.view import View
from fastdarts.ops.philox import Purpose, random_words
from fastdarts.quoting import few

log = logging.getLogger(__name__)


class DaliReaderLoader(DaliLoader):
    """DALI reads the files, draws the boxes and decodes: no Python runs for a single image.

    Labels, indices and flips are those of the other loaders, since DALI's reader is given the sampler's order, epoch by
    epoch. The images are not: the boxes come from DALI's random numbers, seeded for each epoch and rank, so they depend on
    world_size. Resuming repeats the epoch's batches up to the right one, unseen; at an epoch's end that costs nothing.
    All files must be such as DALI decodes itself, and what is not a plain JPEG may look different from Pillow's image. A
    truncated one is noticed only where a box reaches what is missing. A read that never returns is told by the watchdog as
    always, but DALI waits for it when the process ends.
    """

    def __init__(self, index: ImageIndex, indices: Tensor, *, threads: int, **common: Unpack[Common]) -> None:
        """Arguments and errors as DaliLoader's, and DataError for names that DALI cannot be given, which are not UTF-8.

        Says in the log how the images differ.
        """
        super().__init__(index, indices, threads=threads, **common)
        if odd := [path for path in map(index.path, indices.tolist()) if path.encode(errors="replace").decode() != path]:
            named = few(odd)
            raise DataError(f"DALI's reader takes no file names that are not UTF-8: {named}; take --loader dali or rename them")
        split = self.view.stream.name.lower()
        log.info("%s images are read and cropped by DALI: boxes, and so pixels, differ from those of other loaders", split)

    def _produce(self, number: int, stage: Stage) -> Iterator[Batch]:
        return _read(self._index, self.sampler, self.view, self._threads, self.device, number, stage)


def _read(
    index: ImageIndex, sampler: BatchSampler, view: View, threads: int, device: torch.device, number: int, stage: Stage
) -> Iterator[Batch]:
    """Batches from `number` on."""
    split = view.stream.name.lower()
    first, skip = divmod(number, len(sampler))
    for epoch in count(first):
        batches = [sampler.batch(epoch * len(sampler) + part)[1] for part in range(len(sampler))]
        stage.now = f"starting DALI for epoch {epoch} of {split} images"
        pipe = _pipeline(index, torch.cat(batches), view, epoch, sampler, threads, device)
        for part in range(len(batches)):
            stage.now = f"reading and decoding {split} images with DALI; is the file system alive?"
            try:
                pipe.schedule_run()
                images, numbers = outputs(pipe, device)
            except RuntimeError as error:
                stage.now = f"looking for the {split} image that DALI could not decode"
                near = batches[part : part + PREFETCH + 2]  # its reader is ahead
                raise explained(error, ([index.path(i) for i in batch.tolist()] for batch in near)) from error
            if part >= skip:
                yield labelled(epoch, numbers.flatten().long(), images, index, view)
        skip = 0
        del pipe  # before the next one starts


def _pipeline(
    index: ImageIndex, numbers: Tensor, view: View, epoch: int, sampler: BatchSampler, threads: int, device: torch.device
) -> Any:
    """Reads the images `numbers`, int64 (K,), in that order; its outputs are images and their numbers, int32 (N, 1)."""
    seed = random_words(view.seed, view.stream, epoch, torch.tensor([sampler.rank]), Purpose.CROP, 1).item()
    order, size = numbers.tolist(), view.size
    paths = [index.path(i) for i in order]

    def graph(fn: Any) -> tuple[Any, Any]:
        # a file that is cut short while it is mapped would end the process
        files, labels = fn.readers.file(files=paths, labels=order, dont_use_mmap=True)
        sizes = fn.peek_image_shape(files, adjust_orientation=False)
        if view.train:
            area = {"random_area": view.scale, "random_aspect_ratio": RATIO}
            boxes = cut(fn, files, *fn.random_crop_generator(sizes, seed=seed, **area), device)
            return resized(fn, boxes, size=(size, size)), labels
        whole = resized(fn, cut(fn, files, *_middles(fn, sizes), device), resize_shorter=short_side(size))
        return fn.crop(whole, crop=(size, size)), labels

    return pipeline(graph, sampler.batch_size // sampler.world_size, threads, device)


def _middles(fn: Any, sizes: Any) -> tuple[Any, Any]:
    """(top, left) and (height, width) of crop.middle, by DALI, of images of `sizes`."""
    from nvidia.dali import math

    height, width = sizes[0], sizes[1]
    shape = fn.stack(math.min(height, LONGEST * width), math.min(width, LONGEST * height))
    return (sizes[:2] - shape) // 2, shape
