"""Resident cache of decoded images in one flat buffer: on the device, in RAM, or in a memory-mapped file.

Notation: M cached images, B bytes of all of them.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.data.cache_file import open_file, room_taken, write_file
from fastdarts.data.decode import read_rgb
from fastdarts.data.errors import DataError
from fastdarts.data.index import ImageIndex
from fastdarts.data.prefetch import awaited
from fastdarts.data.view import View
from fastdarts.data.workers import torchvision_functional
from fastdarts.ops.random_resized_crop import MOST_SIDE, random_resized_crop
from fastdarts.quoting import quoted

CHUNK = 32  # images per decoding task


@dataclass(frozen=True, eq=False)
class CacheLayout:
    """Offsets of the images in the buffer: rows of RGB pixels, images concatenated.

    index    paths of the files
    numbers  int64 (M,), sorted, stable numbers of the images
    decoded  int64 (M, 2), height and width of the files
    sizes    int64 (M, 2), height and width in the cache
    starts   int64 (M + 1,), byte offset of each image's first pixel; the last is B
    """

    index: ImageIndex
    numbers: Tensor
    decoded: Tensor
    sizes: Tensor
    starts: Tensor

    @staticmethod
    def of(index: ImageIndex, numbers: Tensor, decoded: Tensor, short: int) -> "CacheLayout":
        """Return the layout of images `numbers`, int64 (M,), distinct, with file sizes `decoded`, (M, 2).

        The short side is reduced to `short` pixels and the aspect follows torchvision's resize; smaller images keep their
        size. No side exceeds MOST_SIDE.
        """
        numbers, order = numbers.sort()
        decoded = decoded[order].long()
        least = decoded.amin(1, keepdim=True)
        reduced = torch.where(decoded == least, short, short * decoded // least)
        sizes = torch.where(least > short, reduced, decoded).clamp(max=MOST_SIDE)
        starts = torch.zeros(len(numbers) + 1, dtype=torch.int64)
        torch.cumsum(3 * sizes.prod(1), 0, out=starts[1:])
        return CacheLayout(index, numbers, decoded, sizes, starts)

    @property
    def bytes(self) -> int:
        """Return B."""
        return int(self.starts[-1])

    def fill(self, pixels: Tensor, threads: int, progress: Callable[[int, int], None]) -> None:
        """Decode all files into `pixels`, uint8 (B,) on any device, in `threads` threads (Pillow releases the GIL).

        progress  called from time to time with (images done, M)
        Raises DataError, which names the file, if it does not decode or its size has changed.
        """
        torchvision_functional()
        end = Event()

        def decode(first: int, last: int) -> int:
            images = [self._decode(row) for row in range(first, last) if not end.is_set()]
            if end.is_set():
                return 0
            pixels[int(self.starts[first]) : int(self.starts[last])].copy_(torch.from_numpy(np.concatenate(images)))
            return last - first

        total, done = len(self.numbers), 0
        pool = ThreadPoolExecutor(max(1, threads))
        try:
            spans = [(first, min(first + CHUNK, total)) for first in range(0, total, CHUNK)]
            parts = [pool.submit(decode, *span) for span in spans]
            for (first, last), part in zip(spans, parts, strict=True):
                done += awaited(part, f"{quoted(self._path(first))} to {quoted(self._path(last - 1))}")
                progress(done, total)
        finally:
            end.set()
            pool.shutdown(cancel_futures=True)

    def _path(self, row: int) -> str:
        return self.index.path(int(self.numbers[row]))

    def _decode(self, row: int) -> np.ndarray:
        path = self._path(row)
        try:
            image = read_rgb(path)
        except DataError as error:
            remedy = "it was intact when it was checked: restore it, or start a new run, which excludes it"
            raise DataError(f"{error}; {remedy}") from error
        if [image.height, image.width] != self.decoded[row].tolist():
            then, now = "x".join(map(str, self.decoded[row].tolist()[::-1])), f"{image.width}x{image.height}"
            raise DataError(f"{quoted(path)} had {then} pixels when it was checked, now it has {now}: restart")
        size = self.sizes[row].tolist()
        return np.asarray(
            torchvision_functional().resize(image, size) if size != [image.height, image.width] else image
        ).ravel()

    def boxes(self, view: View, epoch: int, indices: Tensor, rows: Tensor) -> Tensor:
        """Return the crop boxes of the images `indices` in pixels of the cached images, int64 (N, 4): top, left, height, width.

        rows  positions of the images in `numbers`
        Random boxes are the other loaders' boxes, scaled and rounded. The centre box is computed on the cached image.
        """
        kept, decoded = self.sizes[rows], self.decoded[rows]
        if not view.train:
            return torch.tensor(view.boxes(epoch, indices, kept.tolist()))
        corner, extent = torch.tensor(view.boxes(epoch, indices, decoded.tolist())).split(2, dim=1)
        extent = ((2 * extent * kept + decoded) // (2 * decoded)).clamp(min=1)
        corner = torch.minimum((2 * corner * kept + decoded) // (2 * decoded), kept - extent)
        return torch.cat([corner, extent], 1)

    def room_taken(self, folder: Path) -> int:
        """Return the bytes that the cache file in `folder`, complete or unfinished, already occupies."""
        return room_taken(folder, self.key())

    def key(self) -> str:
        """Return the key of the cache file: a digest of file names below the root, sizes, modification times and cached sizes.

        Raises DataError if a file is gone.
        """
        digest = hashlib.sha256(b"fastdarts cache 2\n")
        for number, size in zip(self.numbers.tolist(), self.sizes.tolist(), strict=True):
            path = self.index.path(number)
            try:
                status = os.stat(path)
            except OSError as error:
                raise DataError(f"{quoted(path)} is gone: {error.strerror}; restart") from error
            name = self.index.files[number]
            digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{size}\n"))
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Cache:
    """Filled buffer and its layout."""

    layout: CacheLayout
    pixels: Tensor  # uint8 (B,)

    @staticmethod
    def make(
        layout: CacheLayout,
        device: torch.device | str,
        *,
        folder: Path | None = None,
        threads: int = 1,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> "Cache":
        """Decode the images of `layout` into memory on `device`.

        folder  of a memory-mapped file, shared with other runs on the same images; a GPU gets a copy
        Raises DataError if a file does not decode or the disk is full.
        """
        if folder is None:
            pixels = torch.empty(layout.bytes, dtype=torch.uint8, device=device)
            layout.fill(pixels, threads, progress)
            return Cache(layout, pixels)
        key = layout.key()
        pixels = open_file(folder, key, layout.bytes)
        if pixels is None:
            write_file(folder, key, layout.bytes, lambda pixels: layout.fill(pixels, threads, progress))
            pixels = open_file(folder, key, layout.bytes)
        if pixels is None:
            raise DataError(f"the cache in {folder} was removed while it was opened; choose another --cache_folder")
        return Cache(layout, pixels.to(device))

    def batch(self, view: View, epoch: int, indices: Tensor) -> Batch:
        """Return the images `indices`, int64 (N,), cropped as in epoch `epoch`, on the device of the cache."""
        layout, device = self.layout, self.pixels.device
        rows = torch.searchsorted(layout.numbers, indices.contiguous())
        sizes = layout.sizes[rows]
        boxes = layout.boxes(view, epoch, indices, rows)
        where = torch.cat([layout.starts[rows, None], sizes, boxes], 1)
        labels, flip = layout.index.labels[indices], view.flips(epoch, indices)
        small = (
            [t.pin_memory() for t in (where, labels, indices, flip)]
            if device.type == "cuda"
            else [where, labels, indices, flip]
        )
        where, labels, indices, flip = (t.to(device, non_blocking=True) for t in small)
        images = random_resized_crop(self.pixels, where[:, 0], where[:, 1:3], where[:, 3:], image_size=view.size)
        return Batch(images, labels, indices, flip)
