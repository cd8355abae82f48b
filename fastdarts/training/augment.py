"""Prepare a batch for the network on its device: colour jitter, normalisation with the flip, cutout.

Notation: N images, S pixels a side. All randomness is a pure function of (seed, step, image): not of the loader or the ranks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.ops.cutout import cutout_mask
from fastdarts.ops.patch_mask import normalise
from fastdarts.ops.philox import Purpose, Stream, random_words

GREY = (0.2989, 0.587, 0.114)  # ITU-R 601, as torchvision rounds it
Colour = tuple[float, float, float]


class Prepare(NamedTuple):
    """Map a Batch to the network's input.

    mean, std  of pixels in [0, 1]
    cutout     side of the square set to the mean colour, in pixels; 0 = none (DeVries and Taylor, 2017)
    jitter     strengths of brightness, contrast and saturation, 0 = none, and of hue, in [0, 0.5]
    seed       of the random choices
    """

    mean: Colour
    std: Colour
    cutout: int = 0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    seed: int = 0

    def train(self, batch: Batch, step: Tensor, dtype: torch.dtype) -> Tensor:
        """Return augmented images, `dtype` (N, 3, S, S) in channels_last memory. step: int64 of one element on the device."""
        images = batch.images
        if any(self.jitter):
            words = random_words(self.seed, Stream.TRAIN, step, batch.index, Purpose.JITTER, 8)
            pixels = jitter(images.permute(0, 3, 1, 2).float() / 255, words, self.jitter)
            images = pixels.permute(0, 2, 3, 1) * 255
        x = normalise(images, batch.flip, mean=self.mean, std=self.std, dtype=dtype)
        if not self.cutout:
            return x
        words = random_words(self.seed, Stream.TRAIN, step, batch.index, Purpose.CUTOUT, 2)
        return x.masked_fill(cutout_mask(words, x.shape[-1], self.cutout), 0.0)

    def evaluate(self, batch: Batch, dtype: torch.dtype) -> Tensor:
        """Return normalised images, `dtype` (N, 3, S, S) in channels_last memory."""
        return normalise(batch.images, batch.flip, mean=self.mean, std=self.std, dtype=dtype)


def jitter(pixels: Tensor, words: Tensor, strength: tuple[float, float, float, float]) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image, in an order drawn for each (torchvision's ColorJitter).

    pixels    float (N, 3, S, S), in [0, 1], as is the result
    words     int64 (N, 8): random words of the four factors and of the order
    strength  b: factors are uniform in [max(0, 1 - b), 1 + b]; of hue h: shifts are uniform in [-h, h] turns
    """
    uniform = words[:, :4].to(pixels.dtype) / 2**32
    order = words[:, 4:].argsort(dim=1)
    low = [max(0.0, 1 - s) for s in strength[:3]] + [-strength[3]]
    high = [1 + s for s in strength[:3]] + [strength[3]]
    changes = (brightness, contrast, saturation, hue)
    for position in range(4):
        before = pixels
        for number, change in enumerate(changes):
            if strength[number]:
                factor = (low[number] + (high[number] - low[number]) * uniform[:, number]).view(-1, 1, 1, 1)
                now = (order[:, position] == number).view(-1, 1, 1, 1)
                pixels = torch.where(now, change(before, factor), pixels)
    return pixels


def brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Multiply pixels, (N, 3, S, S) in [0, 1], by factor, (N, 1, 1, 1)."""
    return (pixels * factor).clamp(0, 1)


def contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with the mean of its grey values; shapes as in brightness."""
    mean = _grey(pixels).mean((1, 2, 3), keepdim=True)
    return (factor * pixels + (1 - factor) * mean).clamp(0, 1)


def saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with its grey image; shapes as in brightness."""
    return (factor * pixels + (1 - factor) * _grey(pixels)).clamp(0, 1)


def hue(pixels: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue by `shift` turns, in HSV; shapes as in brightness."""
    red, green, blue = pixels.unbind(1)
    value, least = pixels.amax(1), pixels.amin(1)
    chroma = value - least
    divisor = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    r, g, b = ((value - c) / divisor for c in (red, green, blue))
    sixths = torch.where(value == red, b - g, torch.where(value == green, 2 + r - b, 4 + g - r))
    turned = (sixths / 6 + shift[:, 0]) % 1.0 * 6
    # channel n of (r, g, b) = value - chroma * clamp(min(k, 4 - k), 0, 1), k = (n + hue in sixths) mod 6, n = 5, 3, 1
    parts = [(n + turned) % 6 for n in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in parts], 1)


def _grey(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.split(1, dim=1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue  # numbers, not a tensor: nothing is copied from the host
