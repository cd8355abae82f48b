"""Resize boxes of cached images to S x S pixels: each output pixel gathers its own inputs, one launch.

fastdarts/ops/random_resized_crop.py documents the arguments and has the definition, which this equals bit for bit.
Except for addresses, all integers have 32 bits: a side has at most 2**14 pixels, so sums of shares stay below 2**29.

Notation: N images of H x W pixels in a cache of B bytes, boxes of h x w pixels, S pixels a side of the output; of one axis,
n pixels of the box (h or w), output i, input j = first + k with k in 0 .. taps.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdarts.kernels import launch, rows
from fastdarts.kernels.arguments import RandomResizedCrop
from fastdarts.kernels.compile import Specimen

BITS = tl.constexpr(rows.CROP_BITS)
ONE = tl.constexpr(2**rows.CROP_BITS)  # the sum of an output's weights
HALF = tl.constexpr(2 ** (rows.CROP_BITS - 1))  # of ONE, for rounding
MOST_SIDE = tl.constexpr(rows.MOST_SIDE)


@triton.jit
def share(i_in, b_distance, n, twice):
    """Return t_ij: the distance of the pixel's centre, `distance` from the output's, inside the triangle; 0 beyond the box."""
    return tl.where(i_in < n, tl.maximum(twice - tl.abs(b_distance), 0), 0)


@triton.jit
def rounded(b_sums, b_total):
    """Return floor(2**14 sums / total + 1/2), for 0 <= sums <= total < 2**29.

    float32's quotient is off by at most one, and the remainder corrects it: the remainder is exact modulo 2**32, and below
    4 total.
    """
    b_guess = (b_sums.to(tl.float32) * (ONE / b_total.to(tl.float32)) + 0.5).to(tl.int32)
    b_rest = (b_sums << (BITS + 1)) + b_total - b_guess * (2 * b_total)
    return b_guess + (b_rest >= 2 * b_total).to(tl.int32) - (b_rest < 0).to(tl.int32)


@triton.jit
def axis(i_out, n, S: tl.constexpr):
    """Return, for outputs i: twice the triangle's half-width, the most taps, the first input, its distance, the sum of shares.

    Lengths are in units of 1/(2 S) pixels of the box.
    """
    twice = 2 * tl.maximum(n, S)
    taps = tl.minimum(n, (twice + S - 1) // S)
    b_centre = (2 * i_out + 1) * n
    i_first = tl.maximum(b_centre + S - twice, 0) // (2 * S)
    b_distance = (2 * i_first + 1) * S - b_centre
    b_total = share(i_first, b_distance, n, twice)
    for k in range(1, taps):
        b_total += share(i_first + k, b_distance + 2 * S * k, n, twice)
    return twice, taps, i_first, b_distance, b_total


@triton.jit
def resize(
    p_pixels, p_start, p_size, p_boxes, p_out,
    B,
    S: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Compute out (N, S, S, 3), black where image or box are out of bounds. A program writes ROWS x COLS pixels of an image."""
    TILES_W: tl.constexpr = (S + COLS - 1) // COLS
    TILES_H: tl.constexpr = (S + ROWS - 1) // ROWS
    i_tile = tl.program_id(0)
    i_image = (i_tile // (TILES_W * TILES_H)).to(tl.int64)
    start = tl.load(p_start + i_image)
    H = tl.load(p_size + 2 * i_image).to(tl.int64)
    W = tl.load(p_size + 2 * i_image + 1).to(tl.int64)
    top = tl.load(p_boxes + 4 * i_image)
    left = tl.load(p_boxes + 4 * i_image + 1)
    h = tl.load(p_boxes + 4 * i_image + 2)
    w = tl.load(p_boxes + 4 * i_image + 3)
    m_sides = (H >= 1) & (H <= MOST_SIDE) & (W >= 1) & (W <= MOST_SIDE)
    m_box = (h >= 1) & (h <= H) & (top >= 0) & (top <= H - h) & (w >= 1) & (w <= W) & (left >= 0) & (left <= W - w)
    m_fits = m_sides & m_box & (start >= 0) & (start <= B - 3 * H * W)
    # an invalid box reads one pixel, the cache's first, and is black in the end
    p_corner = p_pixels + tl.where(m_fits, start + 3 * (top * W + left), 0)
    h = tl.where(m_fits, h, 1).to(tl.int32)
    w = tl.where(m_fits, w, 1).to(tl.int32)
    pitch = tl.where(m_fits, 3 * W, 0).to(tl.int32)

    i_row = i_tile // TILES_W % TILES_H * ROWS + tl.arange(0, ROWS)
    i_col = i_tile % TILES_W * COLS + tl.arange(0, COLS)
    twice_h, taps_h, i_first_row, b_row_distance, b_row_total = axis(tl.minimum(i_row, S - 1), h, S)
    twice_w, taps_w, i_first_col, b_col_distance, b_col_total = axis(tl.minimum(i_col, S - 1), w, S)
    b_red = tl.full([ROWS, COLS], HALF, tl.int32)
    b_green = tl.full([ROWS, COLS], HALF, tl.int32)
    b_blue = tl.full([ROWS, COLS], HALF, tl.int32)
    b_row_sums = tl.full([ROWS], 0, tl.int32)
    b_row_before = tl.full([ROWS], 0, tl.int32)
    for k in range(0, taps_h):
        i_in_row = i_first_row + k
        b_row_sums += share(i_in_row, b_row_distance + 2 * S * k, h, twice_h)
        b_row_upto = rounded(b_row_sums, b_row_total)
        p_line = p_corner + (tl.minimum(i_in_row, h - 1) * pitch)[:, None]
        b_line_red = tl.full([ROWS, COLS], HALF, tl.int32)
        b_line_green = tl.full([ROWS, COLS], HALF, tl.int32)
        b_line_blue = tl.full([ROWS, COLS], HALF, tl.int32)
        b_col_sums = tl.full([COLS], 0, tl.int32)
        b_col_before = tl.full([COLS], 0, tl.int32)
        for i in range(0, taps_w):
            i_in_col = i_first_col + i
            b_col_sums += share(i_in_col, b_col_distance + 2 * S * i, w, twice_w)
            b_col_upto = rounded(b_col_sums, b_col_total)
            b_weight = (b_col_upto - b_col_before)[None, :]
            p_pixel = p_line + 3 * tl.minimum(i_in_col, w - 1)[None, :]
            b_line_red += b_weight * tl.load(p_pixel).to(tl.int32)
            b_line_green += b_weight * tl.load(p_pixel + 1).to(tl.int32)
            b_line_blue += b_weight * tl.load(p_pixel + 2).to(tl.int32)
            b_col_before = b_col_upto
        b_weight = (b_row_upto - b_row_before)[:, None]
        b_red += b_weight * (b_line_red >> BITS)
        b_green += b_weight * (b_line_green >> BITS)
        b_blue += b_weight * (b_line_blue >> BITS)
        b_row_before = b_row_upto
    m_out = (i_row < S)[:, None] & (i_col < S)[None, :]
    p_to = p_out + i_image * (3 * S * S) + 3 * (i_row[:, None] * S + i_col[None, :])
    tl.store(p_to, tl.where(m_fits, b_red >> BITS, 0).to(tl.uint8), mask=m_out)
    tl.store(p_to + 1, tl.where(m_fits, b_green >> BITS, 0).to(tl.uint8), mask=m_out)
    tl.store(p_to + 2, tl.where(m_fits, b_blue >> BITS, 0).to(tl.uint8), mask=m_out)


def run(a: RandomResizedCrop) -> Tensor:
    """Compute the result of ops.random_resized_crop; one launch."""
    pixels, start, size, boxes, image_size = a
    out = pixels.new_empty(start.shape[0], image_size, image_size, 3)
    if not out.numel():
        return out
    if pixels.numel() < 3:  # less than one pixel to read
        return out.zero_()
    settings = launch.settings("random_resized_crop.resize", torch.uint8, launch.target_of(pixels.device))
    tiles = triton.cdiv(image_size, settings["ROWS"]) * triton.cdiv(image_size, settings["COLS"])
    start, size, boxes = start.contiguous(), size.contiguous(), boxes.contiguous()
    with launch.on(pixels.device):
        resize[(out.shape[0] * tiles,)](pixels, start, size, boxes, out, pixels.numel(), S=image_size, **settings)
    return out


def specimens(dtype: torch.dtype) -> list[Specimen]:
    """Return kernels to 224 and to 64 pixels, from more than 2**31 bytes. Pixels are bytes, whatever a network's `dtype`."""
    pointers = {"p_pixels": "*u8", "p_start": "*i64", "p_size": "*i32", "p_boxes": "*i64", "p_out": "*u8"}
    signature, loose = pointers | {"B": "i64"}, frozenset({"B"})
    name = "random_resized_crop.resize"
    return [Specimen(resize, signature, {"S": S}, name, torch.uint8, f"{S} px", loose) for S in (64, 224)]
