"""Loader with DALI as file reader and source of random boxes.

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
from fastdarts.quoting import shortlist

log = logging.getLogger(__name__)


class DaliReaderLoader(DaliLoader):
    """Loader that leaves reading, random boxes and decoding to DALI: no Python per image.

    Labels, indices and flips equal the other loaders': DALI's reader receives the sampler's order epoch by epoch. The images
    do not: the boxes come from DALI's random numbers, seeded by epoch and rank, so they depend on world_size. Resuming
    replays and discards the epoch's batches up to the right one; at the end of an epoch that costs nothing.
    DALI must be able to decode all files, and a file that is not a plain JPEG may differ from Pillow's image. A truncated
    file is noticed only if a box reaches the missing part. The watchdog reports a read that never returns as always, but
    DALI waits for it at process exit.
    """

    def __init__(self, index: ImageIndex, indices: Tensor, *, threads: int, **common: Unpack[Common]) -> None:
        """Take DaliLoader's arguments and raise its errors, and DataError for file names that are not UTF-8.

        Logs how the images differ.
        """
        super().__init__(index, indices, threads=threads, **common)
        if odd := [path for path in map(index.path, indices.tolist()) if path.encode(errors="replace").decode() != path]:
            named = shortlist(odd)
            raise DataError(f"DALI's reader takes no file names that are not UTF-8: {named}; take --loader dali or rename them")
        split = self.view.stream.name.lower()
        log.info("%s images are read and cropped by DALI: boxes, and so pixels, differ from those of other loaders", split)

    def _produce(self, number: int, stage: Stage) -> Iterator[Batch]:
        return _read(self._index, self.sampler, self.view, self._threads, self.device, number, stage)


def _read(
    index: ImageIndex, sampler: BatchSampler, view: View, threads: int, device: torch.device, number: int, stage: Stage
) -> Iterator[Batch]:
    """Yield the batches from `number` on."""
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
                stage.now = f"searching for the {split} image that DALI could not decode"
                near = batches[part : part + PREFETCH + 2]  # DALI's reader prefetches
                raise explained(error, ([index.path(i) for i in batch.tolist()] for batch in near)) from error
            if part >= skip:
                yield labelled(epoch, numbers.flatten().long(), images, index, view)
        skip = 0
        del pipe  # before the next pipeline starts


def _pipeline(
    index: ImageIndex, numbers: Tensor, view: View, epoch: int, sampler: BatchSampler, threads: int, device: torch.device
) -> Any:
    """Build the pipeline that reads the images `numbers`, int64 (K,), in order; it outputs images and numbers, int32 (N, 1)."""
    seed = random_words(view.seed, view.stream, epoch, torch.tensor([sampler.rank]), Purpose.CROP, 1).item()
    order, size = numbers.tolist(), view.size
    paths = [index.path(i) for i in order]

    def graph(fn: Any) -> tuple[Any, Any]:
        # truncating a memory-mapped file would kill the process
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
    """Compute crop.middle in DALI for images of `sizes`: (top, left) and (height, width)."""
    from nvidia.dali import math

    height, width = sizes[0], sizes[1]
    shape = fn.stack(math.min(height, LONGEST * width), math.min(width, LONGEST * height))
    return (sizes[:2] - shape) // 2, shape
