"""uint8 NHWC -> normalised, mirrored, masked: which patches of each image, then one pass over the pixels.

fastdarts/ops/patch_mask.py says what each argument means and holds the definition that this equals bit for bit.

Letters: N images of H x W pixels in 3 channels, P patches an image, COLS of them in a row, of SIDE x SIDE pixels.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdarts import native
from fastdarts.kernels import launch
from fastdarts.kernels.compile import Specimen, pointer
from fastdarts.logs import say_once

PURPOSE = 4  # ops.philox.Purpose.MASK
WORD_BITS = 32
MOST_PATCHES = 2**16  # of an image: the kernel holds all their words


@triton.jit
def choose_patches(
    index_ptr, step_ptr, mask_ptr, seed, use, num_masked, P: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr
):
    """mask (N, P): True at the num_masked smallest (random word, patch) pairs of each image. One program an image.

    A pair is word * 2**(BITS - 32) + patch, below 2**BITS - 1. The largest bound below which lie at most num_masked pairs
    is found bit by bit; pairs differ, so below it lie exactly so many.
    """
    n = tl.program_id(0).to(tl.int64)
    i_patch = tl.arange(0, BLOCK)
    m_patch = i_patch < P
    block = (i_patch // 4).to(tl.uint32)
    index = tl.load(index_ptr + n).to(tl.uint32)
    time = tl.load(step_ptr).to(tl.uint32)
    none = tl.full([BLOCK], 0, tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, block, none + index, none + time, none + use.to(tl.uint32))
    lane = i_patch % 4
    word = tl.where(lane == 0, w0, tl.where(lane == 1, w1, tl.where(lane == 2, w2, w3)))
    pair = (word.to(tl.int64) << (BITS - 32)) | i_patch
    bound = n * 0
    for i in range(BITS):
        higher = bound | (tl.full([], 1, tl.int64) << (BITS - 1 - i))
        below = tl.sum((m_patch & (pair < higher)).to(tl.int32), 0)
        bound = tl.where(below <= num_masked, higher, bound)
    tl.store(mask_ptr + n * P + i_patch, (pair < bound).to(tl.int8), mask=m_patch)


@triton.jit
def write_pixels(
    images_ptr,
    flip_ptr,
    fill_ptr,
    mask_ptr,
    x_ptr,
    shift0,
    shift1,
    shift2,
    scale0,
    scale1,
    scale2,
    H: tl.constexpr,
    W: tl.constexpr,
    SIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x: (pixel - shift) * scale, or the fill's colour. A program writes BLOCK numbers of ROWS rows of an image."""
    NUMBERS: tl.constexpr = 3 * W
    TILES_W: tl.constexpr = (NUMBERS + BLOCK - 1) // BLOCK
    TILES_H: tl.constexpr = (H + ROWS - 1) // ROWS
    tile = tl.program_id(0)
    n = (tile // (TILES_W * TILES_H)).to(tl.int64)
    i_row = tile // TILES_W % TILES_H * ROWS + tl.arange(0, ROWS)[:, None]
    i_number = tile % TILES_W * BLOCK + tl.arange(0, BLOCK)[None, :]
    colour, column = i_number % 3, i_number // 3
    inside = (i_row < H) & (i_number < NUMBERS)
    source = tl.where(tl.load(flip_ptr + n) != 0, 3 * (W - 1 - column) + colour, i_number)
    pixel = tl.load(images_ptr + n * (H * NUMBERS) + i_row * NUMBERS + source, mask=inside, other=0)
    shift = tl.where(colour == 0, shift0, tl.where(colour == 1, shift1, shift2))
    scale = tl.where(colour == 0, scale0, tl.where(colour == 1, scale1, scale2))
    fill = tl.load(fill_ptr + colour)
    patch = i_row // SIDE * (W // SIDE) + column // SIDE
    masked = tl.load(mask_ptr + n * ((H // SIDE) * (W // SIDE)) + patch, mask=inside, other=0) != 0
    value = ((pixel.to(tl.float32) - shift) * scale).to(x_ptr.dtype.element_ty)
    tl.store(x_ptr + n * (H * NUMBERS) + i_row * NUMBERS + i_number, tl.where(masked, fill, value), mask=inside)


def run(
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
    """x and mask of ops.patch_mask; two launches. Raises ValueError for more than 65536 patches an image."""
    N, H, W, _ = images.shape
    rows, cols = H // patch_size, W // patch_size
    P = rows * cols
    if P > MOST_PATCHES:
        raise ValueError(f"patch_mask: the Triton kernel takes at most {MOST_PATCHES} patches an image, got {P}")
    x = fill.new_empty(N, H, W, 3).permute(0, 3, 1, 2)
    mask = images.new_empty(N, rows, cols, dtype=torch.bool)
    if not N:
        return x, mask
    target = launch.target_of(images.device)
    if launch.backend("patch_mask.write", fill.dtype, target) == "cuda":
        if native.has("patch_mask_cuda", "CUDA"):
            return torch.ops.fastdarts.patch_mask_cuda(
                images, index, step, flip, fill, seed, stream, patch_size, num_masked, mean, std
            )
        say_once(f"patch_mask: Triton's kernels run, not CUDA's: {native.without_cuda()}")
    images, index, flip, fill = images.contiguous(), index.contiguous(), flip.contiguous(), fill.contiguous()
    block = triton.next_power_of_2(P)
    chosen = launch.settings("patch_mask.choose", fill.dtype, target)
    chosen["num_warps"] = min(32, max(chosen["num_warps"], block // 1024))
    written = launch.settings("patch_mask.write", fill.dtype, target)
    tiles = triton.cdiv(3 * W, written["BLOCK"]) * triton.cdiv(H, written["ROWS"])
    shifts, scales = [255 * m for m in mean], [1 / (255 * s) for s in std]
    use = PURPOSE + 256 * stream
    flags, bits = mask.view(torch.int8), _bits(block)
    with launch.on(images.device):
        choose_patches[(N,)](index, step, flags, seed, use, num_masked, P=P, BLOCK=block, BITS=bits, **chosen)
        pointers = images, flip.view(torch.int8), fill, flags, x
        write_pixels[(N * tiles,)](*pointers, *shifts, *scales, H=H, W=W, SIDE=patch_size, **written)
    return x, mask


def _bits(block: int) -> int:
    """Of a pair: one more than the patches need, so that no pair has all bits set."""
    return WORD_BITS + block.bit_length()


def specimens(dtype: torch.dtype) -> list[Specimen]:
    """Both kernels for 224 x 224 pixels in patches of 8, and 32 x 32 in patches of 4."""
    number = pointer(dtype)
    loose = {"seed": "i64", "use": "i32", "num_masked": "i32"}
    numbers = {f"{name}{c}": "fp32" for name in ("shift", "scale") for c in range(3)}
    found = []
    for side, patch in ((224, 8), (32, 4)):
        P = (side // patch) ** 2
        block, label = triton.next_power_of_2(P), f"{side} px, {P} patches"
        pointers = {"index_ptr": "*i64", "step_ptr": "*i64", "mask_ptr": "*i8"}
        sizes = {"P": P, "BLOCK": block, "BITS": _bits(block)}
        found.append(Specimen(choose_patches, pointers | loose, sizes, "patch_mask.choose", dtype, label, frozenset(loose)))
        pointers = {"images_ptr": "*u8", "flip_ptr": "*i8", "fill_ptr": number, "mask_ptr": "*i8", "x_ptr": number}
        sizes = {"H": side, "W": side, "SIDE": patch}
        found.append(Specimen(write_pixels, pointers | numbers, sizes, "patch_mask.write", dtype, label))
    return found
