"""Images side by side: input, reconstruction, original.

Notation: N images, H x W pixels.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_SIDE, _GAP, _HEAD = 192, 8, 30  # pixels: minimum displayed side of an image, space between images, height of the headings


def picture_grid(
    masked: Tensor,
    reconstructed: Tensor,
    original: Tensor,
    path: str | Path,
    captions: Sequence[str] = ("masked", "reconstructed", "original"),
) -> None:
    """Write one PNG of N rows and three columns under their captions, enlarged by an integer factor.

    masked, reconstructed, original  (N, 3, H, W) RGB, one shape; floating in [0, 1] (clamped, NaN is black) or uint8
    Raises ValueError for another shape or dtype, or unless there are three captions; OSError.
    """
    columns = [masked, reconstructed, original]
    shape = original.shape
    if len(shape) != 4 or shape[1] != 3 or 0 in shape or any(column.shape != shape for column in columns):
        shapes = ", ".join(str(tuple(column.shape)) for column in columns)
        raise ValueError(f"three tensors of one shape (N, 3, H, W) are needed, got {shapes}")
    if len(captions) != len(columns):
        raise ValueError(f"three captions are needed, got {len(captions)}")
    scale = math.ceil(_SIDE / max(shape[2:]))
    height, width = shape[2] * scale, shape[3] * scale
    page = Image.new("RGB", (3 * width + 4 * _GAP, _HEAD + shape[0] * (height + _GAP)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=16)
    for number, (column, caption) in enumerate(zip(columns, captions, strict=True)):
        x = _GAP + number * (width + _GAP)
        pen.text((x + width / 2, _HEAD / 2), caption, fill="#1f2933", font=font, anchor="mm")
        for row, pixels in enumerate(_to_bytes(column)):
            picture = Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.NEAREST)
            page.paste(picture, (x, _HEAD + row * (height + _GAP)))
    page.save(path, format="PNG")


def _to_bytes(images: Tensor) -> Tensor:
    """Return uint8 (N, H, W, 3) on the CPU."""
    if images.is_floating_point():
        images = (images.detach().float().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    if images.dtype != torch.uint8:
        raise ValueError(f"images are floating point in [0, 1] or uint8, not {images.dtype}")
    return images.permute(0, 2, 3, 1).contiguous().cpu()
