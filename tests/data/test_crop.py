"""The crop box: hand-made words, torchvision's algorithm written out again, and statistics."""

import math

import numpy as np
import pytest
import torch

from fastdarts.data.crop import TRIES, WORDS, crop_box, crop_words, flips
from fastdarts.ops.philox import Stream

MAX = 2**32 - 1
MIDDLE = 2**31


def test_whole_square() -> None:
    """Area share 1 - 2**-32 and aspect 1 of 64 x 64: the whole image, one place to put it."""
    assert crop_box([MAX, MIDDLE, MAX, MAX] + [0] * (WORDS - 4), 64, 64) == (0, 0, 64, 64)


def test_box_matches_hand_computation() -> None:
    """Share 0.08 + 0.92 / 2 = 0.54 of 100 x 200 at aspect 1: side sqrt(10800) = 103.9, too wide. Then share 0.31."""
    words = [MIDDLE, MIDDLE, 0, 0, MIDDLE // 2, MIDDLE, MAX, MIDDLE] + [0] * (WORDS - 8)
    side = round(math.sqrt(0.31 * 100 * 200))  # 78.7 -> 79
    assert side == 79
    assert crop_box(words, 100, 200) == (200 - side, (100 - side + 1) // 2, side, side)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(500, 10, (0, 243, 10, 13)), (10, 500, (243, 0, 13, 10)), (1, 1, (0, 0, 1, 1)), (120, 100, (0, 0, 100, 120))],
)
def test_fallback_is_largest_centred_box(width: int, height: int, box: tuple[int, int, int, int]) -> None:
    """With scale (4, 4) no try fits: the aspect ratio is clipped to 3/4 .. 4/3, the box centred."""
    assert crop_box([MAX, MIDDLE, 0, 0] * TRIES, width, height, scale=(4, 4)) == box


def reference(
    words: list[int], width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """torchvision.transforms.v2.RandomResizedCrop.make_params line by line, each draw replaced by the next word."""
    draws = iter(words)
    area = height * width
    log_ratio = np.log(np.array(ratio))
    for _ in range(10):
        target_area = area * (scale[0] + (scale[1] - scale[0]) * (next(draws) / 2**32))
        aspect_ratio = np.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * (next(draws) / 2**32))
        row, column = next(draws) / 2**32, next(draws) / 2**32
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            return math.floor(row * (height - h + 1)), math.floor(column * (width - w + 1)), h, w
    in_ratio = float(width) / float(height)
    if in_ratio < min(ratio):
        w = width
        h = round(w / min(ratio))
    elif in_ratio > max(ratio):
        h = height
        w = round(h * max(ratio))
    else:
        w = width
        h = height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0), (0.9, 1.0)])
@pytest.mark.parametrize(("width", "height"), [(500, 375), (96, 160), (64, 64), (3, 2), (700, 30), (9, 400)])
def test_boxes_match_torchvision_algorithm(width: int, height: int, scale: tuple[float, float]) -> None:
    ratio = (3 / 4, 4 / 3)
    for words in crop_words(7, Stream.TRAIN, 3, torch.arange(300)).tolist():
        box = crop_box(words, width, height, scale, ratio)
        assert box == reference(words, width, height, scale, ratio)
        top, left, h, w = box
        assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h > 0 and w > 0


def test_boxes_cover_whole_ranges() -> None:
    """On a large square: area share uniform in 0.08 .. 1 where all fits, aspect log-uniform, places to both edges."""
    boxes = [crop_box(w, 2000, 2000, (0.08, 0.5)) for w in crop_words(0, Stream.VAL, 0, torch.arange(4000)).tolist()]
    top, left, h, w = np.array(boxes, float).T
    share, aspect = h * w / 2000**2, np.log(w / h)
    assert 0.0795 < share.min() < 0.082 and 0.498 < share.max() < 0.5005
    assert abs(share.mean() - 0.29) < 4 * 0.42 / math.sqrt(12 * 4000)
    assert -0.29 < aspect.min() < -0.286 and 0.286 < aspect.max() < 0.29 and abs(aspect.mean()) < 0.012
    for place in (top / (2000 - h), left / (2000 - w)):
        assert place.min() < 0.005 and place.max() > 0.995 and abs(place.mean() - 0.5) < 0.02


def test_words_and_flips_depend_only_on_seed_stream_epoch_and_image() -> None:
    index = torch.tensor([5, 9, 2])
    words = crop_words(1, Stream.TRAIN, 4, index)
    assert words.shape == (3, WORDS)
    assert crop_words(1, Stream.TRAIN, 4, index[1:2])[0].equal(words[1])
    for other in ((2, Stream.TRAIN, 4), (1, Stream.VAL, 4), (1, Stream.TRAIN, 5)):
        assert not crop_words(*other, index).equal(words)
    many = flips(1, Stream.TRAIN, 0, torch.arange(4000))
    assert many.dtype == torch.bool and abs(many.float().mean().item() - 0.5) < 0.04
    assert not many.equal(flips(1, Stream.TRAIN, 1, torch.arange(4000)))
    assert flips(1, Stream.TRAIN, 0, torch.tensor([17]))[0] == many[17]
