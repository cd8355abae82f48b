"""uint8 NHWC -> normalised, mirrored, masked: choose the patches of each image, then one pass over the pixels.

fastdarts/ops/patch_mask.py documents the arguments and has the definition, which this equals bit for bit.

Notation: N images of H x W pixels in 3 channels, P patches an image, COLS of them in a row, of SIDE x SIDE pixels.
"""

import torch
import triton
import triton.language as tl

from fastdarts import native
from fastdarts.kernels import launch
from fastdarts.kernels.arguments import PatchMask, PatchMaskResults
from fastdarts.kernels.compile import Specimen, pointer
from fastdarts.kernels.rows import PURPOSE_MASK
from fastdarts.logs import say_once

WORD_BITS = 32
MOST_PATCHES = 2**16  # of an image: the kernel holds all their words


@triton.jit
def choose_patches(
    p_index, p_step, p_mask,
    seed, use, num_masked,
    P: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Compute mask (N, P): True at the num_masked smallest (random word, patch) pairs of each image. One program an image.

    A pair is word * 2**(BITS - 32) + patch, below 2**BITS - 1. A bitwise search finds the largest bound with at most num_masked
    pairs below it; all pairs differ, so their number below the bound is exactly num_masked.
    """
    n = tl.program_id(0).to(tl.int64)
    i_patch = tl.arange(0, BLOCK)
    m_patch = i_patch < P
    b_block = (i_patch // 4).to(tl.uint32)
    index = tl.load(p_index + n).to(tl.uint32)
    time = tl.load(p_step).to(tl.uint32)
    b_none = tl.full([BLOCK], 0, tl.uint32)
    b_w0, b_w1, b_w2, b_w3 = tl.philox(seed, b_block, b_none + index, b_none + time, b_none + use.to(tl.uint32))
    i_lane = i_patch % 4
    b_word = tl.where(i_lane == 0, b_w0, tl.where(i_lane == 1, b_w1, tl.where(i_lane == 2, b_w2, b_w3)))
    b_pair = (b_word.to(tl.int64) << (BITS - 32)) | i_patch
    bound = n * 0
    for i in range(BITS):
        higher = bound | (tl.full([], 1, tl.int64) << (BITS - 1 - i))
        below = tl.sum((m_patch & (b_pair < higher)).to(tl.int32), 0)
        bound = tl.where(below <= num_masked, higher, bound)
    tl.store(p_mask + n * P + i_patch, (b_pair < bound).to(tl.int8), mask=m_patch)


@triton.jit
def write_pixels(
    p_images, p_flip, p_fill, p_mask, p_x,
    shift0, shift1, shift2, scale0, scale1, scale2,
    H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute x: (pixel - shift) * scale, or the fill's colour. A program writes BLOCK numbers of ROWS rows of an image."""
    NUMBERS: tl.constexpr = 3 * W
    TILES_W: tl.constexpr = (NUMBERS + BLOCK - 1) // BLOCK
    TILES_H: tl.constexpr = (H + ROWS - 1) // ROWS
    i_tile = tl.program_id(0)
    n = (i_tile // (TILES_W * TILES_H)).to(tl.int64)
    i_row = i_tile // TILES_W % TILES_H * ROWS + tl.arange(0, ROWS)[:, None]
    i_number = i_tile % TILES_W * BLOCK + tl.arange(0, BLOCK)[None, :]
    colour, i_column = i_number % 3, i_number // 3
    m_inside = (i_row < H) & (i_number < NUMBERS)
    i_source = tl.where(tl.load(p_flip + n) != 0, 3 * (W - 1 - i_column) + colour, i_number)
    b_pixel = tl.load(p_images + n * (H * NUMBERS) + i_row * NUMBERS + i_source, mask=m_inside, other=0)
    b_shift = tl.where(colour == 0, shift0, tl.where(colour == 1, shift1, shift2))
    b_scale = tl.where(colour == 0, scale0, tl.where(colour == 1, scale1, scale2))
    b_fill = tl.load(p_fill + colour)
    i_patch = i_row // SIDE * (W // SIDE) + i_column // SIDE
    b_masked = tl.load(p_mask + n * ((H // SIDE) * (W // SIDE)) + i_patch, mask=m_inside, other=0) != 0
    b_value = ((b_pixel.to(tl.float32) - b_shift) * b_scale).to(p_x.dtype.element_ty)
    tl.store(p_x + n * (H * NUMBERS) + i_row * NUMBERS + i_number, tl.where(b_masked, b_fill, b_value), mask=m_inside)


def run(a: PatchMask) -> PatchMaskResults:
    """Compute x and mask of ops.patch_mask; two launches. Raises ValueError for more than 65536 patches an image."""
    images, index, step, flip, fill, seed, stream, patch_size, num_masked, mean, std = a
    N, H, W, _ = images.shape
    rows, cols = H // patch_size, W // patch_size
    P = rows * cols
    if P > MOST_PATCHES:
        raise ValueError(f"patch_mask: the Triton kernel supports at most {MOST_PATCHES} patches per image, got {P}")
    x = fill.new_empty(N, H, W, 3).permute(0, 3, 1, 2)
    mask = images.new_empty(N, rows, cols, dtype=torch.bool)
    if not N:
        return PatchMaskResults(x, mask)
    target = launch.target_of(images.device)
    if launch.backend("patch_mask.write", fill.dtype, target) == "cuda":
        if native.has("patch_mask_cuda", "CUDA"):
            return torch.ops.fastdarts.patch_mask_cuda(*a)
        say_once(f"patch_mask: running Triton's kernels instead of CUDA's: {native.without_cuda()}")
    images, index, flip, fill = images.contiguous(), index.contiguous(), flip.contiguous(), fill.contiguous()
    block = triton.next_power_of_2(P)
    chosen = launch.settings("patch_mask.choose", fill.dtype, target)
    chosen["num_warps"] = min(32, max(chosen["num_warps"], block // 1024))
    written = launch.settings("patch_mask.write", fill.dtype, target)
    tiles = triton.cdiv(3 * W, written["BLOCK"]) * triton.cdiv(H, written["ROWS"])
    shifts, scales = [255 * m for m in mean], [1 / (255 * s) for s in std]
    use = PURPOSE_MASK + 256 * stream
    flags, bits = mask.view(torch.int8), _bits(block)
    with launch.on(images.device):
        choose_patches[(N,)](index, step, flags, seed, use, num_masked, P=P, BLOCK=block, BITS=bits, **chosen)
        pointers = images, flip.view(torch.int8), fill, flags, x
        write_pixels[(N * tiles,)](*pointers, *shifts, *scales, H=H, W=W, SIDE=patch_size, **written)
    return PatchMaskResults(x, mask)


def _bits(block: int) -> int:
    """Return the bits of a pair: one more than the patches need, so that no pair has all bits set."""
    return WORD_BITS + block.bit_length()


def specimens(dtype: torch.dtype) -> list[Specimen]:
    """Return both kernels for 224 x 224 pixels in patches of 8, and 32 x 32 in patches of 4."""
    number = pointer(dtype)
    loose = {"seed": "i64", "use": "i32", "num_masked": "i32"}
    numbers = {f"{name}{c}": "fp32" for name in ("shift", "scale") for c in range(3)}
    found = []
    for side, patch in ((224, 8), (32, 4)):
        P = (side // patch) ** 2
        block, label = triton.next_power_of_2(P), f"{side} px, {P} patches"
        pointers = {"p_index": "*i64", "p_step": "*i64", "p_mask": "*i8"}
        sizes = {"P": P, "BLOCK": block, "BITS": _bits(block)}
        found.append(Specimen(choose_patches, pointers | loose, sizes, "patch_mask.choose", dtype, label, frozenset(loose)))
        pointers = {"p_images": "*u8", "p_flip": "*i8", "p_fill": number, "p_mask": "*i8", "p_x": number}
        sizes = {"H": side, "W": side, "SIDE": patch}
        found.append(Specimen(write_pixels, pointers | numbers, sizes, "patch_mask.write", dtype, label))
    return found
