"""Augmentation of a stream's images: crop box and flip, identical for every loader."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdarts.data.crop import RATIO, centre_box, crop_box, crop_words, flips
from fastdarts.ops.philox import Stream

Box = tuple[int, int, int, int]  # top, left, height, width in pixels


class View(NamedTuple):
    """Crops of `size` pixels a side: random boxes of `scale` of the area with random flips or, if not `train`, the centre."""

    size: int
    seed: int
    stream: Stream
    train: bool
    scale: tuple[float, float]

    def flips(self, epoch: int, index: Tensor) -> Tensor:
        """Return which of the images `index`, int64 (N,), are flipped in this epoch: bool (N,)."""
        return flips(self.seed, self.stream, epoch, index) if self.train else torch.zeros(len(index), dtype=torch.bool)

    def boxes(self, epoch: int, index: Tensor, sizes: list[tuple[int, int]]) -> list[Box]:
        """Return the box of each of the images `index`, int64 (N,), with (height, width) `sizes`."""
        if not self.train:
            return [centre_box(height, width, self.size) for height, width in sizes]
        words = crop_words(self.seed, self.stream, epoch, index).tolist()
        return [crop_box(w, width, height, self.scale, RATIO) for w, (height, width) in zip(words, sizes, strict=True)]
