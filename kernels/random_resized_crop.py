"""Boxes of cached images to squares of S x S pixels: each output pixel gathers its own inputs, one launch.

fastdarts/ops/random_resized_crop.py says what each argument means and holds the definition that this equals bit for bit.
All is in 32-bit integers but the addresses: a side has at most 2**14 pixels, so sums of shares stay below 2**29.

Letters: N images of H x W pixels in a cache of B bytes, boxes of h x w pixels, S pixels a side of the output; of one axis,
n pixels of the box (h or w), output i, input j = first + k with k in 0 .. taps.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdarts.kernels import launch
from fastdarts.kernels.compile import Specimen

BITS = tl.constexpr(14)  # ops.random_resized_crop.BITS
ONE = tl.constexpr(2**14)  # what the weights of an output sum to
HALF = tl.constexpr(2**13)  # of one, so that a sum is rounded
MOST_SIDE = tl.constexpr(2**14)  # ops.random_resized_crop.MOST_SIDE


@triton.jit
def share(j, distance, n, twice):
    """t_ij: how far the pixel's centre, `distance` from the output's, is inside the triangle; none beyond the box."""
    return tl.where(j < n, tl.maximum(twice - tl.abs(distance), 0), 0)


@triton.jit
def rounded(sums, total):
    """floor(2**14 sums / total + 1/2), for 0 <= sums <= total < 2**29.

    float32's quotient is off by at most one, which its remainder tells: that is right modulo 2**32, and below 4 total.
    """
    guess = (sums.to(tl.float32) * (ONE / total.to(tl.float32)) + 0.5).to(tl.int32)
    rest = (sums << (BITS + 1)) + total - guess * (2 * total)
    return guess + (rest >= 2 * total).to(tl.int32) - (rest < 0).to(tl.int32)


@triton.jit
def axis(i, n, S: tl.constexpr):
    """Of outputs i: twice the triangle's half-width, the most taps, the first input, its distance, the sum of shares.

    Lengths are in units of 1/(2 S) pixels of the box.
    """
    twice = 2 * tl.maximum(n, S)
    taps = tl.minimum(n, (twice + S - 1) // S)
    centre = (2 * i + 1) * n
    first = tl.maximum(centre + S - twice, 0) // (2 * S)
    distance = (2 * first + 1) * S - centre
    total = share(first, distance, n, twice)
    for k in range(1, taps):
        total += share(first + k, distance + 2 * S * k, n, twice)
    return twice, taps, first, distance, total


@triton.jit
def resize(pixels_ptr, start_ptr, size_ptr, boxes_ptr, out_ptr, B, S: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """out (N, S, S, 3). A program writes ROWS x COLS pixels of an image; black ones where image or box do not fit."""
    TILES_W: tl.constexpr = (S + COLS - 1) // COLS
    TILES_H: tl.constexpr = (S + ROWS - 1) // ROWS
    tile = tl.program_id(0)
    image = (tile // (TILES_W * TILES_H)).to(tl.int64)
    start = tl.load(start_ptr + image)
    H = tl.load(size_ptr + 2 * image).to(tl.int64)
    W = tl.load(size_ptr + 2 * image + 1).to(tl.int64)
    top = tl.load(boxes_ptr + 4 * image)
    left = tl.load(boxes_ptr + 4 * image + 1)
    h = tl.load(boxes_ptr + 4 * image + 2)
    w = tl.load(boxes_ptr + 4 * image + 3)
    m_sides = (H >= 1) & (H <= MOST_SIDE) & (W >= 1) & (W <= MOST_SIDE)
    m_box = (h >= 1) & (h <= H) & (top >= 0) & (top <= H - h) & (w >= 1) & (w <= W) & (left >= 0) & (left <= W - w)
    m_fits = m_sides & m_box & (start >= 0) & (start <= B - 3 * H * W)
    # what does not fit is one pixel, the cache's first, and black in the end
    corner_ptr = pixels_ptr + tl.where(m_fits, start + 3 * (top * W + left), 0)
    h = tl.where(m_fits, h, 1).to(tl.int32)
    w = tl.where(m_fits, w, 1).to(tl.int32)
    pitch = tl.where(m_fits, 3 * W, 0).to(tl.int32)

    i_row = tile // TILES_W % TILES_H * ROWS + tl.arange(0, ROWS)
    i_col = tile % TILES_W * COLS + tl.arange(0, COLS)
    twice_h, taps_h, first_row, row_distance, row_total = axis(tl.minimum(i_row, S - 1), h, S)
    twice_w, taps_w, first_col, col_distance, col_total = axis(tl.minimum(i_col, S - 1), w, S)
    red = tl.full([ROWS, COLS], HALF, tl.int32)
    green = tl.full([ROWS, COLS], HALF, tl.int32)
    blue = tl.full([ROWS, COLS], HALF, tl.int32)
    row_sums = tl.full([ROWS], 0, tl.int32)
    row_before = tl.full([ROWS], 0, tl.int32)
    for k in range(0, taps_h):
        j_row = first_row + k
        row_sums += share(j_row, row_distance + 2 * S * k, h, twice_h)
        row_upto = rounded(row_sums, row_total)
        line_ptr = corner_ptr + (tl.minimum(j_row, h - 1) * pitch)[:, None]
        line_red = tl.full([ROWS, COLS], HALF, tl.int32)
        line_green = tl.full([ROWS, COLS], HALF, tl.int32)
        line_blue = tl.full([ROWS, COLS], HALF, tl.int32)
        col_sums = tl.full([COLS], 0, tl.int32)
        col_before = tl.full([COLS], 0, tl.int32)
        for i in range(0, taps_w):
            j_col = first_col + i
            col_sums += share(j_col, col_distance + 2 * S * i, w, twice_w)
            col_upto = rounded(col_sums, col_total)
            weight = (col_upto - col_before)[None, :]
            pixel_ptr = line_ptr + 3 * tl.minimum(j_col, w - 1)[None, :]
            line_red += weight * tl.load(pixel_ptr).to(tl.int32)
            line_green += weight * tl.load(pixel_ptr + 1).to(tl.int32)
            line_blue += weight * tl.load(pixel_ptr + 2).to(tl.int32)
            col_before = col_upto
        weight = (row_upto - row_before)[:, None]
        red += weight * (line_red >> BITS)
        green += weight * (line_green >> BITS)
        blue += weight * (line_blue >> BITS)
        row_before = row_upto
    m_out = (i_row < S)[:, None] & (i_col < S)[None, :]
    to_ptr = out_ptr + image * (3 * S * S) + 3 * (i_row[:, None] * S + i_col[None, :])
    tl.store(to_ptr, tl.where(m_fits, red >> BITS, 0).to(tl.uint8), mask=m_out)
    tl.store(to_ptr + 1, tl.where(m_fits, green >> BITS, 0).to(tl.uint8), mask=m_out)
    tl.store(to_ptr + 2, tl.where(m_fits, blue >> BITS, 0).to(tl.uint8), mask=m_out)


def run(pixels: Tensor, start: Tensor, size: Tensor, boxes: Tensor, image_size: int) -> Tensor:
    """The result of ops.random_resized_crop; one launch."""
    out = pixels.new_empty(start.shape[0], image_size, image_size, 3)
    if not out.numel():
        return out
    if pixels.numel() < 3:  # not one pixel to read
        return out.zero_()
    settings = launch.settings("random_resized_crop.resize", torch.uint8, launch.target_of(pixels.device))
    tiles = triton.cdiv(image_size, settings["ROWS"]) * triton.cdiv(image_size, settings["COLS"])
    start, size, boxes = start.contiguous(), size.contiguous(), boxes.contiguous()
    with launch.on(pixels.device):
        resize[(out.shape[0] * tiles,)](pixels, start, size, boxes, out, pixels.numel(), S=image_size, **settings)
    return out


def specimens(dtype: torch.dtype) -> list[Specimen]:
    """To 224 and to 64 pixels, out of more than 2**31 bytes. Pixels are bytes, whatever `dtype` a network has."""
    pointers = {"pixels_ptr": "*u8", "start_ptr": "*i64", "size_ptr": "*i32", "boxes_ptr": "*i64", "out_ptr": "*u8"}
    signature, loose = pointers | {"B": "i64"}, frozenset({"B"})
    name = "random_resized_crop.resize"
    return [Specimen(resize, signature, {"S": S}, name, torch.uint8, f"{S} px", loose) for S in (64, 224)]
