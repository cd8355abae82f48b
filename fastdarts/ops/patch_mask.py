"""Normalise, mirror and mask uint8 NHWC images in one pass: the first op on a batch.

Notation: N images of H x W pixels in 3 channels, p pixels a side of a patch, P = (H/p) * (W/p) patches an image.
"""

from collections.abc import Sequence
from math import floor
from typing import Any

import torch
from torch import Tensor

from fastdarts.kernels.arguments import PatchMask, PatchMaskResults
from fastdarts.ops import backend as backends
from fastdarts.ops.philox import Purpose, random_words, smallest
from fastdarts.ops.schema import Op, schema

OP = Op("patch_mask", PatchMask, PatchMaskResults)
NONE, FILL = (None,) * len(PatchMask._fields), PatchMask._fields.index("fill")  # of gradients
# the native module's CUDA kernel: kernels/patch_mask.py uses it if launch.json says so
torch.library.define("fastdarts::patch_mask_cuda", schema(PatchMask, PatchMaskResults))


def num_masked(ratio: float, patches: int) -> int:
    """Return the number of masked patches at a mask ratio: floor(ratio * patches + 0.5), in float64.

    Raises ValueError unless 0 <= ratio <= 1.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"the mask ratio must lie between 0 and 1, got {ratio}")
    return floor(ratio * patches + 0.5)


def patch_mask(
    images: Tensor,
    index: Tensor,
    step: Tensor,
    flip: Tensor,
    fill: Tensor,
    *,
    seed: int,
    stream: int,
    patch_size: int,
    num_masked: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Normalise, mirror and mask N images (random masking of patches: He et al., MAE, 2022, section 3).

    images      uint8 (N, H, W, 3), any strides
    index       int64 (N,), each in [0, 2**32): the images' stable numbers, the keys of their masks
    step        int64, one element, in [0, 2**32), on the images' device: never read by the host, so it may be captured
    flip        bool (N,), True: mirror left to right
    fill        `dtype` (3,), the colour of masked pixels in normalised units; the only differentiable argument
    seed        0 <= seed < 2**64
    stream      a philox.Stream, 0..255
    patch_size  p, pixels; divides H and W
    num_masked  0..P, how many patches of each image are masked
    mean, std   three numbers each, of pixels in [0, 1]
    dtype       of x: float32, float64, bfloat16 or float16
    backend     "auto", "cpu" (C++: float32, float64), "triton" (NVIDIA GPUs: float32, bfloat16, float16) or "definition"

    Returns x, `dtype` (N, 3, H, W) in channels_last memory, and mask, bool (N, H/p, W/p), True where masked. In image n
    those are the num_masked smallest (random word, patch) pairs of philox.random_words(seed, stream, step, index,
    Purpose.MASK, P), patches counted row by row in the output (after the mirror). Pixels that are not masked hold
    (value - 255 mean) * (1 / (255 std)), both constants and the arithmetic in float64 for float64, else in float32.
    All backends agree bit for bit. Raises ValueError for arguments that do not fit and BackendUnavailable.
    """
    args = PatchMask(images, index, step, flip, fill, seed, stream, patch_size, num_masked, list(mean), list(std))
    _check(args, dtype)
    if seed >= 2**63:  # the schema's int has 64 bits and a sign
        args = args._replace(seed=seed - 2**64)
    return backends.run("patch_mask", backend, images.device, dtype, *args)


def normalise(
    images: Tensor, flip: Tensor, *, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """patch_mask without a mask: `dtype` (N, 3, H, W) in channels_last memory; same arguments."""
    pixels = torch.where(flip.view(-1, 1, 1, 1), images.flip(2), images)
    pixels = pixels.to(torch.float64 if dtype == torch.float64 else torch.float32)
    channels = [(pixels[..., c] - 255 * mean[c]) * (1 / (255 * std[c])) for c in range(3)]
    return torch.stack(channels, -1).to(dtype).permute(0, 3, 1, 2)


def definition(
    images: Tensor,
    index: Tensor,
    step: Tensor,
    flip: Tensor,
    fill: Tensor,
    seed: int,
    stream: int,
    patch_size: int,
    num_masked: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """patch_mask in plain PyTorch, on any device; same arguments, seed modulo 2**64."""
    n, h, w, _ = images.shape
    rows, cols = h // patch_size, w // patch_size
    words = random_words(seed % 2**64, stream, step, index, Purpose.MASK, rows * cols)
    mask = smallest(words, num_masked).view(n, rows, cols)
    x = normalise(images, flip, mean=mean, std=std, dtype=fill.dtype)
    masked = mask.view(n, rows, 1, cols, 1).expand(n, rows, patch_size, cols, patch_size).reshape(n, h, w, 1)
    return torch.where(masked, fill, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), mask


torch.library.impl("fastdarts::patch_mask", "default")(definition)


@OP.cuda
def _on_gpu(a: PatchMask) -> PatchMaskResults:
    from fastdarts.kernels import patch_mask as kernels  # not above: Triton may be missing

    return kernels.run(a)


@OP.fake
def _fake(a: PatchMask) -> PatchMaskResults:
    n, h, w, _ = a.images.shape
    x = a.fill.new_empty(n, h, w, 3).permute(0, 3, 1, 2)
    return PatchMaskResults(x, a.images.new_empty(n, h // a.patch_size, w // a.patch_size, dtype=torch.bool))


class _PatchMask(torch.autograd.Function):
    """The registered op (C++ where the native module is loaded, Triton on a GPU) and the gradient of `fill`."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        x, mask = torch.ops.fastdarts.patch_mask(*args)
        ctx.save_for_backward(mask)
        ctx.mark_non_differentiable(mask)
        return x, mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        _, rows, cols = mask.shape
        patch_sums = grad.unflatten(3, (cols, -1)).unflatten(2, (rows, -1)).sum((3, 5))  # (N, 3, rows, cols)
        fill_grad = torch.where(mask[:, None], patch_sums, 0).sum((0, 2, 3))
        return *NONE[:FILL], fill_grad, *NONE[FILL + 1 :]


def _registered(*args: Any) -> tuple[Tensor, Tensor]:
    return _PatchMask.apply(*args)


def _beyond_triton(*args: Any) -> str | None:
    from fastdarts.kernels.patch_mask import MOST_PATCHES

    a = PatchMask(*args)
    patches = (a.images.shape[1] // a.patch_size) * (a.images.shape[2] // a.patch_size)
    return None if patches <= MOST_PATCHES else f"its kernel supports at most {MOST_PATCHES} patches per image, got {patches}"


backends.register(
    "patch_mask",
    backends.Backend("cpu", backends.native_cpu(torch.float32, torch.float64), _registered),
    backends.Backend("triton", backends.triton(torch.float32, torch.bfloat16, torch.float16), _registered, _beyond_triton),
    backends.Backend("definition", backends.anything, definition),
)


def _check(args: PatchMask, dtype: torch.dtype) -> None:
    """Raise ValueError, saying what was given, unless the arguments are as patch_mask documents them."""
    images, index, step, flip, fill, seed, stream, patch_size, num_masked, mean, std = args
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be uint8 (N, H, W, 3), got {images.dtype} {tuple(images.shape)}")
    n, h, w, _ = images.shape
    if patch_size < 1 or h < 1 or w < 1 or h % patch_size or w % patch_size:
        raise ValueError(f"patch_size {patch_size} must divide the images' height {h} and width {w}")
    patches = (h // patch_size) * (w // patch_size)
    if not 0 <= num_masked <= patches:
        raise ValueError(f"num_masked must be 0..{patches} (patches of {patch_size} in {h} x {w}), got {num_masked}")
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be float32, float64, bfloat16 or float16, got {dtype}")
    expected = {"index": (index, torch.int64, (n,)), "flip": (flip, torch.bool, (n,)), "fill": (fill, dtype, (3,))}
    for name, (tensor, kind, shape) in expected.items():
        if tensor.dtype != kind or tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {kind} {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
    if step.dtype != torch.int64 or step.numel() != 1:
        raise ValueError(f"step must be an int64 tensor of one element, got {step.dtype} {tuple(step.shape)}")
    for name, tensor in {"index": index, "step": step, "flip": flip, "fill": fill}.items():
        if tensor.device != images.device:
            raise ValueError(f"{name} is on {tensor.device}, the images are on {images.device}; move it there")
    if not 0 <= seed < 2**64 or not 0 <= stream < 256:
        raise ValueError(f"seed must be within 0..2**64 - 1 and stream within 0..255, got {seed} and {stream}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean and std must be three numbers each, std above 0, got {mean} and {std}")
