"""Crop boxes from decoded images of any sizes and resize them to squares: the reader of a resident cache.

Notation: N images of H x W pixels in 3 channels, boxes of h x w pixels in them, S pixels a side of the result, B bytes of
the cache; along one axis, n pixels of the box (h or w), output i in 0 .. S, input j in 0 .. n.
"""

from typing import Any

import torch
from torch import Tensor

from fastdarts.kernels.arguments import RandomResizedCrop
from fastdarts.kernels.rows import CROP_BITS as BITS
from fastdarts.kernels.rows import MOST_SIDE
from fastdarts.ops import backend as backends
from fastdarts.ops.schema import Op

OP = Op("random_resized_crop", RandomResizedCrop, Tensor)


def random_resized_crop(
    pixels: Tensor, start: Tensor, size: Tensor, boxes: Tensor, *, image_size: int, backend: str = "auto"
) -> Tensor:
    """Crop N boxes from cached images and resize each to S x S: Pillow's BILINEAR (antialiased) of the cropped image.

    pixels      uint8 (B,), contiguous: the cache; may be a memory-mapped file, and larger than 2**31 bytes
    start       int64 (N,), the offset of image n: pixels[start[n] : start[n] + 3 H W] is (H, W, 3), row after row
    size        int32 or int64 (N, 2), its H and W, pixels, each 1..16384
    boxes       int64 (N, 4), top, left, h, w in pixels of image n; inside it, 1 <= h and 1 <= w
    image_size  S, 1..16384
    backend     "auto", "cpu" (C++), "triton" (NVIDIA GPUs) or "definition"

    Returns uint8 (N, S, S, 3), contiguous. Nothing is differentiable; all tensors are on one device. An image may occur
    more than once. Nothing outside a box is read.

    Output i weighs input j by the triangle of half-width max(1, n/S) pixels, cut off at the box's edges:
    t_ij = max(0, 2 max(S, n) - |(2j + 1) S - (2i + 1) n|). The weights have 14 bits and are differences of rounded sums, so
    that those of an output sum to exactly 2**14 and a box of one colour keeps it:
    w_ij = r(t_i0 + .. + t_ij) - r(t_i0 + .. + t_i(j-1)), r(c) = floor(2**14 c / t + 1/2), t the sum of all t_ij.
    First along rows, then along columns, each time rounded to floor((sum_j w_ij x_j + 2**13) / 2**14). All arithmetic is on
    integers, so all backends agree bit for bit.

    Pillow's weights have 22 bits, each rounded separately: its results differ from these by at most one level, by less than
    0.02 on average. Pillow 13 resizes columns first if a box is higher than S and narrow (about 2 w < h + S); there a
    quarter of the numbers differ by one. Over a search's boxes that is less than 0.1 levels on average.

    Raises ValueError for arguments that do not fit, and BackendUnavailable. The CPU backend and the definition check the
    bounds of images and boxes. The GPU kernel does not raise, which avoids host synchronisation: it reads nothing outside the
    cache, and outputs black pixels for an image or a box out of bounds.
    """
    args = RandomResizedCrop(pixels, start, size, boxes, image_size)
    _check(args)
    return backends.run("random_resized_crop", backend, pixels.device, torch.uint8, *args)


def weights(n: int, image_size: int) -> Tensor:
    """Return w_ij of one axis, in units of 2**-14: int64 (image_size, n)."""
    i, j = torch.arange(image_size)[:, None], torch.arange(n)
    half = max(image_size, n)
    shares = (2 * half - ((2 * j + 1) * image_size - (2 * i + 1) * n).abs()).clamp(min=0)
    sums = shares.cumsum(1)
    total = sums[:, -1:]
    rounded = (2 ** (BITS + 1) * sums + total) // (2 * total)
    return rounded.diff(dim=1, prepend=torch.zeros_like(total))


def definition(pixels: Tensor, start: Tensor, size: Tensor, boxes: Tensor, image_size: int) -> Tensor:
    """random_resized_crop in plain PyTorch, on any device; start, size and boxes synchronise with the host."""
    out = pixels.new_empty(start.shape[0], image_size, image_size, 3)
    rows = zip(start.tolist(), size.tolist(), boxes.tolist(), strict=True)
    for n, (first, (height, width), (top, left, h, w)) in enumerate(rows):
        _check_place(n, pixels.numel(), first, height, width, top, left, h, w)
        image = pixels[first : first + 3 * height * width].view(height, width, 3)
        box = image[top : top + h, left : left + w].double()  # exact: the sums are integers below 2**22
        for axis, length in ((1, w), (0, h)):
            weight = weights(length, image_size).to(box)
            sums = torch.tensordot(weight, box, ([1], [axis])).movedim(0, axis)
            box = ((sums + 2 ** (BITS - 1)) / 2**BITS).floor()
        out[n] = box
    return out


torch.library.impl("fastdarts::random_resized_crop", "default")(definition)


@OP.cuda
def _on_gpu(a: RandomResizedCrop) -> Tensor:
    from fastdarts.kernels import random_resized_crop as kernels  # not above: Triton may be missing

    return kernels.run(a)


@OP.fake
def _fake(a: RandomResizedCrop) -> Tensor:
    return a.pixels.new_empty(a.start.shape[0], a.image_size, a.image_size, 3)


def _registered(*args: Any) -> Tensor:
    return torch.ops.fastdarts.random_resized_crop(*args)


backends.register(
    "random_resized_crop",
    backends.Backend("cpu", backends.native_cpu(torch.uint8), _registered),
    backends.Backend("triton", backends.triton(torch.uint8), _registered),
    backends.Backend("definition", backends.anything, definition),
    dtypes=(torch.uint8,),
)


def _check(args: RandomResizedCrop) -> None:
    """Raise ValueError, saying what was given, unless the arguments are as random_resized_crop documents them.

    Does not read tensors' values: on a GPU that would synchronise with the host.
    """
    pixels, start, size, boxes, image_size = args
    if pixels.dtype != torch.uint8 or pixels.dim() != 1 or not pixels.is_contiguous():
        raise ValueError(f"pixels must be uint8 (B,) and contiguous, got {pixels.dtype} {tuple(pixels.shape)}")
    if not 1 <= image_size <= MOST_SIDE:
        raise ValueError(f"image_size must be 1..{MOST_SIDE}, got {image_size}")
    n = start.shape[0] if start.dim() else 0
    integers = (torch.int32, torch.int64)
    expected = {
        "start": (start, (torch.int64,), (n,)),
        "size": (size, integers, (n, 2)),
        "boxes": (boxes, (torch.int64,), (n, 4)),
    }
    for name, (tensor, dtypes, shape) in expected.items():
        if tensor.dtype not in dtypes or tuple(tensor.shape) != shape:
            allowed = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
            raise ValueError(f"{name} must be {allowed} {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.device != pixels.device:
            raise ValueError(f"{name} is on {tensor.device}, the pixels are on {pixels.device}; move it there")


def _check_place(n: int, bytes_: int, start: int, height: int, width: int, top: int, left: int, h: int, w: int) -> None:
    """Raise ValueError unless image n is inside the cache and its box inside the image."""
    if not (1 <= height <= MOST_SIDE and 1 <= width <= MOST_SIDE):
        raise ValueError(f"random_resized_crop: image {n} is {height} x {width} pixels, a side must be 1..{MOST_SIDE}")
    if not 0 <= start <= bytes_ - 3 * height * width:
        at = f"{height} x {width} pixels at {start} is not inside the buffer of {bytes_} bytes"
        raise ValueError(f"random_resized_crop: image {n} of {at}")
    if not (0 <= top <= height - h < height and 0 <= left <= width - w < width):
        box = f"box {n} (top {top}, left {left}, {h} x {w}) is not inside its image of {height} x {width} pixels"
        raise ValueError(f"random_resized_crop: {box}")
