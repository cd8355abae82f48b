"""Shared by the kernels of mixed_cell: fields of the plan's table, tiles of a state, stencils, pools, merged sums.

Notation: N images, C channels of a state, CQ of them that pass through an edge's candidates, H W pixels of an input, Ho Wo of
a node, m = N*Ho*Wo, BP pixels and BC channels of a tile (BC a power of two, at least 16 for the tensor cores).
Prefixes, here and in all kernels: p_ pointer (or a tuple of pointers), i_ index, o_ offset, m_ mask (the interpreter cannot
combine one with a scalar condition), b_ values of a block; capitals are compile-time constants, everything else is a scalar.
A signature lists pointers, then integers, then constants. Fields of the table that are offsets of tensors count blocks of
ALIGN numbers, so that the compiler sees aligned addresses.
"""

import inspect
from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any

import triton
import triton.language as tl

from fastdarts.kernels import rows

BLOCK = tl.constexpr(rows.ALIGN)


class Numbers(tl.constexpr):
    """Numbers by name. Kernels refer to them as globals (not through a module), or Triton's cache would ignore a change."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        super().__init__(namedtuple("Numbers", numbers)(**numbers))

    def __getattr__(self, name: str) -> int:  # in the interpreter; the compiler looks into `value` itself
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.value, name)


def _fields(row: type[Any]) -> Numbers:
    """Return the position of each field of a row of the table, and the SIZE of a row."""
    return Numbers({field.upper(): i for i, field in enumerate((*row._fields, "size"))})


UNIT, EDGE, TERM, NODE, STATE, POOL, NORM, SUM = map(_fields, rows.ROWS)
KIND = Numbers({kind.name: kind.value for kind in rows.Kind})


def kernel(function: Callable[..., None]) -> triton.JITFunction:
    """triton.jit, with runtime integers excluded from Triton's value specialisation.

    Integers are no tuples: Triton specialises those of a tuple all the same.
    """
    arguments = inspect.signature(function).parameters.values()
    integers = [a.name for a in arguments if not a.name.startswith("p_") and a.annotation is not tl.constexpr]
    return triton.jit(do_not_specialize=integers)(function)


@triton.jit
def state_of(p_inputs, p_kept, source, o_state):
    """Return the pointer to a state: an input, or, for source -1, a block of saved memory."""
    p_x = p_kept + o_state * BLOCK
    if source == 0:
        p_x = p_inputs[0]
    if source == 1:
        p_x = p_inputs[1]
    if source == 2:
        p_x = p_inputs[2]
    if source == 3:
        p_x = p_inputs[3]
    return p_x


@triton.jit
def coordinates(i_pixel, height, width):
    """Return (image, row, column) of a pixel."""
    i_line = i_pixel // width
    i_image = i_line // height
    return i_image, i_line - i_image * height, i_pixel - i_line * width


@triton.jit
def channels_of(p_channels, i_edge, CQ: tl.constexpr, BC: tl.constexpr, CHOSEN: tl.constexpr):
    """Return the channels of an edge's state that pass through its candidates, (BC,)."""
    i_c = tl.arange(0, BC)
    if CHOSEN:
        i_c = tl.load(p_channels + i_edge * CQ + i_c, mask=i_c < CQ, other=0).to(tl.int32)
    return i_c


@triton.jit
def through_of(p_inverse, i_edge, i_tile, i_channel, m_channel, C: tl.constexpr, CHOSEN: tl.constexpr):
    """Return the positions of a state's channels among those of an edge's candidates; -1 for bypassed channels."""
    if CHOSEN:
        i_through = tl.load(p_inverse + i_edge * C + i_channel, mask=m_channel, other=-1)
    else:
        i_through = tl.where(i_tile == 0, tl.where(m_channel, i_channel, -1), -1)
    return i_through


@triton.jit
def tile_at(
    p_x,
    i_image, i_row, i_column, m_pixel, height, width, i_channel, m_channel,
    ROW: tl.constexpr,
):  # fmt: skip
    """Load an image's pixels in float32, 0 outside the image; also return the mask of the pixels inside."""
    m_inside = m_pixel & (i_row >= 0) & (i_row < height) & (i_column >= 0) & (i_column < width)
    i_pixel = ((i_image * height + i_row) * width + i_column).to(tl.int64)
    m_block = m_inside[:, None] & m_channel[None, :]
    return tl.load(p_x + i_pixel[:, None] * ROW + i_channel[None, :], mask=m_block, other=0.0).to(tl.float32), m_inside


@triton.jit
def rows_of(p_x, i_pixel, m_pixel, i_channel, m_channel, ROW):
    """Load numbers of pixels in float32, 0 where masked."""
    m_block = m_pixel[:, None] & m_channel[None, :]
    return tl.load(p_x + i_pixel.to(tl.int64)[:, None] * ROW + i_channel[None, :], mask=m_block, other=0.0).to(tl.float32)


@triton.jit
def rectified(b_x):
    """Apply ReLU, keeping NaN."""
    return tl.where(b_x <= 0, 0.0, b_x)


@triton.jit
def three(p_rows, i_row, i_c, m_c, CQ: tl.constexpr):
    """Load row i_row of a (rows, 3, CQ) table of float32: three times (BC,)."""
    p_row = p_rows + i_row * 3 * CQ + i_c
    b_first = tl.load(p_row, mask=m_c, other=0.0)
    b_second = tl.load(p_row + CQ, mask=m_c, other=0.0)
    return b_first, b_second, tl.load(p_row + 2 * CQ, mask=m_c, other=0.0)


@triton.jit
def normalised(b_y, b_mean, b_scale, b_shift):
    """Compute xhat: subtracts the mean's float32 head before any rounding; its tail is in the shift."""
    return (b_y - b_mean[None, :]) * b_scale[None, :] + b_shift[None, :]


@triton.jit
def rectified_input(b_x, m_inside, b_mean, b_scale, b_shift, SECOND: tl.constexpr):
    """Return the input of a depthwise convolution: relu(x), or, in a second half, relu(xhat); 0 outside the image in either."""
    if SECOND:
        b_x = tl.where(m_inside[:, None], normalised(b_x, b_mean, b_scale, b_shift), 0.0)
    return rectified(b_x)


@triton.jit
def affine_of(p_affine, i_norm, i_c, m_c, NORMS: tl.constexpr, CQ: tl.constexpr):
    """Load scale and shift of a BN in float64: twice (BC,)."""
    b_scale = tl.load(p_affine + i_norm * CQ + i_c, mask=m_c, other=0.0).to(tl.float64)
    return b_scale, tl.load(p_affine + (NORMS + i_norm) * CQ + i_c, mask=m_c, other=0.0).to(tl.float64)


@triton.jit
def store_affine(p_affine, i_norm, i_c, m_c, b_scale, b_shift, NORMS: tl.constexpr, CQ: tl.constexpr):
    """Store a BN's row of scales and of shifts."""
    kind = p_affine.dtype.element_ty
    tl.store(p_affine + i_norm * CQ + i_c, b_scale.to(kind), mask=m_c)
    tl.store(p_affine + (NORMS + i_norm) * CQ + i_c, b_shift.to(kind), mask=m_c)


@triton.jit
def weights_of_images(p_edges, i_edge, i_image, m_pixel, images):
    """Load an edge's weight of each pixel's image: (BP, 1)."""
    return tl.load(p_edges + i_edge * images + i_image, mask=m_pixel, other=0.0).to(tl.float32)[:, None]


# ---------------------------------------------------------------------------------------------------- stencils


@triton.jit
def depthwise(
    p_x, p_weights,
    i_channel, i_c, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, dilation, b_mean, b_scale, b_shift,
    ROW: tl.constexpr, K: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """Compute the depthwise convolution of relu(x), of relu(xhat) if SECOND, at a tile of output pixels: (BP, BC)."""
    b_out = tl.full([i_row.shape[0], i_c.shape[0]], 0.0, tl.float32)
    reach = dilation * (K // 2)
    for i in range(K):
        for j in tl.static_range(K):
            i_tap_row, i_tap_column = i_row * stride + (i * dilation - reach), i_column * stride + (j * dilation - reach)
            b_x, m_inside = tile_at(p_x, i_image, i_tap_row, i_tap_column, m_pixel, height, width, i_channel, m_c, ROW)
            b_x = rectified_input(b_x, m_inside, b_mean, b_scale, b_shift, SECOND)
            b_out += b_x * tl.load(p_weights + i_c * (K * K) + (i * K + j), mask=m_c, other=0.0).to(tl.float32)[None, :]
    return b_out


@triton.jit
def depthwise_of(
    p_x, p_weights,
    kernel, i_channel, i_c, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, dilation, b_mean, b_scale, b_shift,
    ROW: tl.constexpr, SECOND: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Compute `depthwise` with a kernel of 3 or 5 rows, or 7 where that is the largest."""
    if kernel == 3:
        b_out = depthwise(
            p_x, p_weights, i_channel, i_c, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, dilation,
            b_mean, b_scale, b_shift, ROW, 3, SECOND,
        )  # fmt: skip
    elif LARGEST == 5 or kernel == 5:
        b_out = depthwise(
            p_x, p_weights, i_channel, i_c, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, dilation,
            b_mean, b_scale, b_shift, ROW, 5, SECOND,
        )  # fmt: skip
    else:
        b_out = depthwise(
            p_x, p_weights, i_channel, i_c, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, dilation,
            b_mean, b_scale, b_shift, ROW, LARGEST, SECOND,
        )  # fmt: skip
    return b_out


@triton.jit
def depthwise_transposed(
    p_dz, p_weights,
    i_c, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, dilation,
    ROW: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of a tile of input pixels from dz (height, width) through the depthwise convolution: (BP, BC)."""
    b_out = tl.full([i_row.shape[0], i_c.shape[0]], 0.0, tl.float32)
    reach = dilation * (K // 2)
    for i in range(K):
        for j in tl.static_range(K):
            i_tap_row, i_tap_column = i_row + (reach - i * dilation), i_column + (reach - j * dilation)
            m_met = m_pixel & ((i_tap_row & (stride - 1)) == 0) & ((i_tap_column & (stride - 1)) == 0)
            i_tap_row, i_tap_column = i_tap_row >> (stride - 1), i_tap_column >> (stride - 1)
            b_dz, _ = tile_at(p_dz, i_image, i_tap_row, i_tap_column, m_met, height, width, i_c, m_c, ROW)
            b_out += b_dz * tl.load(p_weights + i_c * (K * K) + (i * K + j), mask=m_c, other=0.0).to(tl.float32)[None, :]
    return b_out


@triton.jit
def tap_offset(t, taps, halves):
    """Return (rows, columns) from a dense convolution's output pixel, times its stride, to the input of tap t."""
    side = tl.where(taps == 9, 3, 1)
    return tl.where(halves != 0, t, t // side - side // 2), tl.where(halves != 0, t, t % side - side // 2)


@triton.jit
def dense_matrix(
    p_weights,
    t, taps, halves, i_out, m_out, i_in, m_in,
    CQ: tl.constexpr,
):  # fmt: skip
    """Load tap t of a dense convolution: (outputs, inputs), in the order of the given indices."""
    i_flat = i_out * CQ + i_in
    o_tap = tl.where(halves != 0, i_flat, i_flat * taps + t)
    m_tap = m_out & m_in & (tl.where(halves != 0, i_out // (CQ // 2), t) == t)
    return tl.load(p_weights + o_tap, mask=m_tap, other=0.0)


@triton.jit
def pools(
    p_x,
    i_channel, m_c, i_image, i_row, i_column, m_pixel, height, width, stride,
    ROW: tl.constexpr,
):  # fmt: skip
    """Compute maximum, its position among the nine (the first in row-major order), mean and count of a 3x3 window."""
    b_best = tl.full([i_row.shape[0], i_channel.shape[0]], float("-inf"), tl.float32)
    b_total = tl.full([i_row.shape[0], i_channel.shape[0]], 0.0, tl.float32)
    b_place = tl.full([i_row.shape[0], i_channel.shape[0]], 0, tl.int32)
    b_count = tl.full([i_row.shape[0]], 0.0, tl.float32)
    for i in range(3):
        for j in tl.static_range(3):
            i_tap_row, i_tap_column = i_row * stride + (i - 1), i_column * stride + (j - 1)
            b_x, m_inside = tile_at(p_x, i_image, i_tap_row, i_tap_column, m_pixel, height, width, i_channel, m_c, ROW)
            m_better = m_inside[:, None] & ((b_x > b_best) | (b_x != b_x))
            b_best = tl.where(m_better, b_x, b_best)
            b_place = tl.where(m_better, i * 3 + j, b_place)
            b_total += b_x
            b_count += tl.where(m_inside, 1.0, 0.0)
    b_count = tl.maximum(b_count, 1.0)
    return tl.where(m_pixel[:, None], b_best, 0.0), b_place, b_total / b_count[:, None], b_count


@triton.jit
def largest_of_four(
    p_x,
    i_channel, m_c, i_image, i_row, i_column, m_pixel, height, width,
    ROW: tl.constexpr,
):  # fmt: skip
    """Compute the 2x2 maximum at output pixels: position (the first) and value."""
    b_best, _ = tile_at(p_x, i_image, i_row * 2, i_column * 2, m_pixel, height, width, i_channel, m_c, ROW)
    b_place = tl.full(b_best.shape, 0, tl.int32)
    for t in tl.static_range(1, 4):
        i_tap_row, i_tap_column = i_row * 2 + t // 2, i_column * 2 + t % 2
        b_x, _ = tile_at(p_x, i_image, i_tap_row, i_tap_column, m_pixel, height, width, i_channel, m_c, ROW)
        m_better = (b_x > b_best) | (b_x != b_x)
        b_best = tl.where(m_better, b_x, b_best)
        b_place = tl.where(m_better, t, b_place)
    return b_best, b_place


# -------------------------------------------------------------------------------------------------------- sums


@triton.jit
def deviations(b_y, m_pixel, b_pivot, b_total, b_squares, is_first):
    """Add a tile to the sums of y minus the pivot, and of its squares; the pivot is the mean of the part's first tile."""
    b_y = tl.where(m_pixel[:, None], b_y, 0.0)
    if is_first:
        b_pivot = tl.sum(b_y, axis=0) / tl.sum(tl.where(m_pixel, 1.0, 0.0), axis=0)
    b_y = tl.where(m_pixel[:, None], b_y - b_pivot[None, :], 0.0)
    return b_pivot, b_total + tl.sum(b_y, axis=0), b_squares + tl.sum(b_y * b_y, axis=0)


@triton.jit
def store_three(p_rows, i_row, i_c, m_c, b_first, b_second, b_third, CQ: tl.constexpr):
    """Store row i_row of a (rows, 3, CQ) table."""
    p_row = p_rows + i_row * 3 * CQ + i_c
    tl.store(p_row, b_first, mask=m_c)
    tl.store(p_row + CQ, b_second, mask=m_c)
    tl.store(p_row + 2 * CQ, b_third, mask=m_c)


@triton.jit
def merged(p_rows, i_row, parts, i_c, m_c, CQ: tl.constexpr):
    """Sum rows (parts, 2, CQ) of float32 over the parts, starting at i_row, in float64 and in order: twice (BC,)."""
    b_first = tl.full([i_c.shape[0]], 0.0, tl.float64)
    b_second = tl.full([i_c.shape[0]], 0.0, tl.float64)
    for part in range(0, parts, 16):
        i_part = part + tl.arange(0, 16)
        p_part = p_rows + ((i_row + i_part) * 2 * CQ)[:, None] + i_c[None, :]
        m_block = (i_part < parts)[:, None] & m_c[None, :]
        b_first += tl.sum(tl.load(p_part, mask=m_block, other=0.0).to(tl.float64), axis=0)
        b_second += tl.sum(tl.load(p_part + CQ, mask=m_block, other=0.0).to(tl.float64), axis=0)
    return b_first, b_second


@triton.jit
def gradient_of_norm(
    p_coefficients, p_scaled, p_middles, p_row,
    m, middle_parts, i_c, m_c,
    CQ: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    """Return a, c0, c1 of a unit's dL/dy = a (g - c0 - c1 xhat); g is the gradient at its BN's output."""
    i_norm = tl.load(p_row + UNIT.NORM)
    b_a, b_c0, b_c1 = three(p_coefficients, i_norm, i_c, m_c, CQ)
    if tl.load(p_row + UNIT.MIDDLE) != 0:
        _, b_a, _ = three(p_scaled, i_norm, i_c, m_c, CQ)
        if BATCH:
            b_first, b_second = merged(p_middles, tl.load(p_row + UNIT.SLOT) * middle_parts, middle_parts, i_c, m_c, CQ)
            b_c0 = (b_first / m.to(tl.float64)).to(tl.float32)
            b_c1 = (b_second / m.to(tl.float64)).to(tl.float32)
        else:
            b_c0, b_c1 = b_a * 0.0, b_a * 0.0
    return b_a, b_c0, b_c1


@triton.jit
def gradient_tile(
    p_g, p_y,
    i_pixel, m_pixel, g_row, i_g, i_c, m_c, b_factor, b_mean, b_scale, b_shift, b_a, b_c0, b_c1,
    CQ: tl.constexpr,
):  # fmt: skip
    """Compute dL/dy of a tile, from the gradient at its BN's output, times a factor of its image, and from y: (BP, BC)."""
    b_g = rows_of(p_g, i_pixel, m_pixel, i_g, m_c, g_row) * b_factor
    b_xhat = normalised(rows_of(p_y, i_pixel, m_pixel, i_c, m_c, CQ), b_mean, b_scale, b_shift)
    return tl.where(m_pixel[:, None], b_a[None, :] * (b_g - b_c0[None, :] - b_xhat * b_c1[None, :]), 0.0)
