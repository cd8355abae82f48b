"""Batches of in-memory images: random crops of the padded image, on the device that holds the images. No file, no decoding.

Notation: M images of H x W pixels in memory, N images a batch on this rank, S side of a crop in pixels.
"""

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.data.loader import Common, EvalCommon, Evaluation, Loader
from fastdarts.data.prefetch import Activity
from fastdarts.data.sampler import BatchSampler
from fastdarts.data.view import View
from fastdarts.ops.philox import Purpose, random_words


class Pixels(NamedTuple):
    """pixels: uint8 (M, H, W, 3) on any device, which computes the batches; labels: int64 (M,) on the CPU."""

    pixels: Tensor
    labels: Tensor

    def batch(self, indices: Tensor, corners: Tensor, flip: Tensor, size: int) -> Batch:
        """Crop the images `indices`, int64 (N,), zero-padded, to `size` pixels a side, on the device of `pixels`.

        corners  int64 (N, 2), top and left of each crop; negative values lie in the padding
        flip     bool (N,)
        All three are on the CPU. Does not synchronise with the device.
        """
        pixels, labels = self
        small = torch.stack([indices, labels[indices], *corners.unbind(1), flip.long()])
        if pixels.is_cuda:
            small = small.pin_memory().to(pixels.device, non_blocking=True)
        index, label, top, left, mirrored = small
        return Batch(windows(pixels, index, top, left, size), label, index, mirrored.bool())


def windows(pixels: Tensor, index: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Crop squares of `size` pixels from the images `index`, int64 (N,), zero outside the image: uint8 (N, S, S, 3).

    pixels     uint8 (M, H, W, 3), contiguous
    top, left  int64 (N,), first pixel of each square in its image, of any sign
    All tensors are on one device. Not differentiable.
    """
    _, H, W, _ = pixels.shape
    along = torch.arange(size, device=pixels.device)
    rows, columns = top[:, None] + along, left[:, None] + along
    inside = ((rows >= 0) & (rows < H))[:, :, None] & ((columns >= 0) & (columns < W))[:, None, :]
    where = (index[:, None] * H + rows.clamp(0, H - 1))[:, :, None] * W + columns.clamp(0, W - 1)[:, None, :]
    return pixels.view(-1, 3)[where] * inside[..., None]


def corners(view: View, epoch: int, indices: Tensor, side: int, padding: int) -> Tensor:
    """Return top and left of the crops of the images `indices`, int64 (N,), of `side` pixels: int64 (N, 2).

    A training view draws them uniformly over the image padded by `padding` pixels (torchvision's RandomCrop); any other view
    takes the centre.
    """
    if not view.train:
        return torch.full((len(indices), 2), (side - view.size) // 2)
    words = random_words(view.seed, view.stream, epoch, indices, Purpose.CROP, 2)
    return (words * (side + 2 * padding - view.size + 1) >> 32) - padding


class ArrayLoader(Loader):
    """Training batches: DARTS' random crops of padded images, and flips. Order and flips are the same as in every loader."""

    def __init__(self, array: Pixels, indices: Tensor, *, padding: int, **common: Unpack[Common]) -> None:
        """Take data.loader.Common's arguments, `indices`, int64, of the split's images, and zero pixels around an image.

        Raises DataError if the batch size does not fit the split or world_size.
        """
        super().__init__(indices, **common)
        self._array, self._padding = array, padding

    def _produce(self, number: int, stage: Activity) -> Iterator[Batch]:
        return _cut(self._array, self.sampler, self.view, self._padding, number, stage)


def _cut(array: Pixels, sampler: BatchSampler, view: View, padding: int, number: int, stage: Activity) -> Iterator[Batch]:
    """Yield the batches from `number` on."""
    side = array.pixels.shape[1]
    for coming in count(number):
        stage.now = f"cutting {view.stream.name.lower()} batch {coming} from the images in memory"
        epoch, indices = sampler.batch(coming)
        yield array.batch(indices, corners(view, epoch, indices, side, padding), view.flips(epoch, indices), view.size)


class ArrayEvalLoader(Evaluation):
    """Evaluation pass: whole images, or their centre crop for a smaller image size; no flip."""

    def __init__(self, array: Pixels, indices: Tensor, **common: Unpack[EvalCommon]) -> None:
        """Take data.loader.EvalCommon's arguments and `indices`, int64, of the array's images."""
        super().__init__(indices, **common)
        self._array = array

    def _produce(self, stage: Activity) -> Iterator[Batch]:
        side = self._array.pixels.shape[1]
        for number, indices in enumerate(self.batches):
            stage.now = f"cutting evaluation batch {number} from the images in memory"
            where, flip = corners(self.view, 0, indices, side, 0), self.view.flips(0, indices)
            yield self._array.batch(indices, where, flip, self.view.size)
