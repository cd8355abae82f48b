"""Crop boxes and flips of images, as pure functions of random words."""

import math
from collections.abc import Sequence

from torch import Tensor

from fastdarts.ops.philox import Purpose, random_words

TRIES = 10
WORDS = 4 * TRIES  # area, aspect ratio, top, left of each attempt
SCALE = (0.08, 1.0)  # share of the image's area
RATIO = (3 / 4, 4 / 3)  # width / height
LEAST_KEPT = 256  # pixels
LONGEST = 16  # largest aspect ratio of an image resized as a whole
MARGIN = 256 / 224  # evaluation: resized short side over crop size


def crop_box(
    words: Sequence[int],
    width: int,
    height: int,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> tuple[int, int, int, int]:
    """Return the box of torchvision's RandomResizedCrop from given random words, in float64, identical on every machine.

    words  WORDS random words in [0, 2**32)
    width, height, and the result (top, left, h, w) are in pixels; 0 < h <= height, 0 < w <= width, inside the image.
    Takes the first of ten attempts that fits, else the largest centred box of an admissible aspect ratio.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area_word, ratio_word, top_word, left_word in zip(*[iter(words)] * 4, strict=True):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * area_word / 2**32)
        aspect = math.exp(low + (high - low) * ratio_word / 2**32)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return top_word * (height - h + 1) >> 32, left_word * (width - w + 1) >> 32, h, w
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def short_side(size: int) -> int:
    """Return the short side, in pixels, to which evaluation resizes an image before the `size` x `size` centre crop."""
    return round(size * MARGIN)


def central_part(width: int, height: int) -> tuple[int, int, int, int] | None:
    """Return the central part to resize of an evaluated image with aspect above LONGEST; None for any other image.

    (left, top, right, bottom) in pixels. Resizing a whole image of 8,000 x 1 pixels takes 1.5 GB before its centre crop; the
    result is the same except for the offset of whole pixels.
    """
    most = LONGEST * min(width, height)
    w, h = min(width, most), min(height, most)
    left, top = (width - w) // 2, (height - h) // 2
    return None if (w, h) == (width, height) else (left, top, left + w, top + h)


def kept_side(size: int) -> int:
    """Return the default short side, in pixels, of cached images for crops of `size` x `size`.

    It is evaluation's short side, at least 256: crops of images reduced further are so much smoother that the losses of a
    search come out lower.
    """
    return max(LEAST_KEPT, short_side(size))


def centre_box(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Return the centre box of an evaluated image in pixels before resizing: (top, left, h, w), h = w."""
    side = max(1, round(min(height, width) * size / short_side(size)))
    return round((height - side) / 2), round((width - side) / 2), side, side


def crop_words(seed: int, stream: int, epoch: int, index: Tensor) -> Tensor:
    """Return the words of crop_box for each image: int64 (N, WORDS)."""
    return random_words(seed, stream, epoch, index, Purpose.CROP, WORDS)


def flips(seed: int, stream: int, epoch: int, index: Tensor) -> Tensor:
    """Return the images to flip horizontally, each with probability 1/2: bool (N,)."""
    return random_words(seed, stream, epoch, index, Purpose.FLIP, 1)[:, 0] < 2**31
