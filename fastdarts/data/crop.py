"""Where an image is cropped and whether it is mirrored: pure functions of random words."""

import math
from collections.abc import Sequence

from torch import Tensor

from fastdarts.ops.philox import Purpose, random_words

TRIES = 10
WORDS = 4 * TRIES  # area, aspect ratio, top, left of each try
SCALE = (0.08, 1.0)  # share of the image's area
RATIO = (3 / 4, 4 / 3)  # width / height
LEAST_KEPT = 256  # pixels
LONGEST = 16  # times its short side, of an image that is resized as a whole
MARGIN = 256 / 224  # of an evaluated image: its short side over the side of the crop


def crop_box(
    words: Sequence[int],
    width: int,
    height: int,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> tuple[int, int, int, int]:
    """The box of torchvision's RandomResizedCrop, with its randomness handed in: float64, the same everywhere.

    words  WORDS random words in [0, 2**32)
    width, height, and the result (top, left, h, w) are in pixels; 0 < h <= height, 0 < w <= width, inside the image.
    The first of ten tries that fits is taken; if none does, the largest centred box of an admissible aspect ratio.
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
    """To how many pixels an evaluated image's short side is resized before `size` x `size` of them are cut out."""
    return round(size * MARGIN)


def middle(width: int, height: int) -> tuple[int, int, int, int] | None:
    """What is resized of an evaluated image that is longer than LONGEST times its short side; None where it is all of it.

    (left, top, right, bottom) in pixels, at the centre. Resized as a whole, an image of 8,000 x 1 pixels takes 1.5 GB, of which
    the centre is then cut out: it is the same, but for where whole pixels begin.
    """
    most = LONGEST * min(width, height)
    w, h = min(width, most), min(height, most)
    left, top = (width - w) // 2, (height - h) // 2
    return None if (w, h) == (width, height) else (left, top, left + w, top + h)


def kept_side(size: int) -> int:
    """The short side, in pixels, of images that a cache keeps for crops of `size` x `size`, where nothing else is asked for.

    What evaluation takes, and never below 256: crops of images that were reduced further are so much smoother that losses
    of a search come out lower.
    """
    return max(LEAST_KEPT, short_side(size))


def centre_box(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """The box of an evaluated image in pixels of the image before resizing: (top, left, h, w), h = w, at the centre."""
    side = max(1, round(min(height, width) * size / short_side(size)))
    return round((height - side) / 2), round((width - side) / 2), side, side


def crop_words(seed: int, stream: int, epoch: int, index: Tensor) -> Tensor:
    """The words of crop_box for each image: int64 (N, WORDS)."""
    return random_words(seed, stream, epoch, index, Purpose.CROP, WORDS)


def flips(seed: int, stream: int, epoch: int, index: Tensor) -> Tensor:
    """Which images are mirrored left to right, each with probability 1/2: bool (N,)."""
    return random_words(seed, stream, epoch, index, Purpose.FLIP, 1)[:, 0] < 2**31
