"""Backward kernels of mixed_cell for the gradients of its weights, launched if these are needed.

Notation as in mixed_cell_parts.py, launches as in mixed_cell_forward.py. Each part has a row as long as all weights;
`reduce_parts` adds the rows in order.
"""

from typing import Any

import torch
import triton.language as tl

from fastdarts.kernels import mixed_cell_parts as cell
from fastdarts.kernels import mixed_cell_specimens
from fastdarts.kernels.compile import Specimen
from fastdarts.kernels.mixed_cell_parts import BLOCK, UNIT
from fastdarts.kernels.mixed_cell_specimens import WIDTHS, Width


@cell.kernel
def matrix_gradient(
    p_inputs, p_saved, p_work, p_weights, p_channels, p_edges, p_norms, p_scaled, p_coefficients, p_middles, p_parts, p_table,
    o_listed, o_units, H, W, Ho, Wo, m, per, parts, middle_parts, numbers,
    C: tl.constexpr, CQ: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr, CHOSEN: tl.constexpr, BATCH: tl.constexpr,
    SECOND: tl.constexpr, AFFINE: tl.constexpr, PER_IMAGE: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Compute a part of dL/d(pointwise matrix) = sum over pixels of dL/dy times the recomputed depthwise output."""
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    p_row = p_table + o_units + tl.load(p_table + o_listed + tl.program_id(0) // parts) * UNIT.SIZE
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    kernel, dilation = tl.load(p_row + UNIT.KERNEL).to(tl.int32), tl.load(p_row + UNIT.DILATION).to(tl.int32)
    p_taps = p_weights + tl.load(p_row + UNIT.DEPTHWISE)
    p_g = p_work + tl.load(p_row + UNIT.GRAD) * BLOCK
    p_y = p_saved + tl.load(p_row + UNIT.Y) * BLOCK
    i_chosen = cell.channels_of(p_channels, tl.load(p_row + UNIT.EDGE), CQ, BC, CHOSEN)
    p_out = p_scaled if AFFINE else p_norms  # of the BNs' outputs
    if SECOND:
        p_x = p_saved + tl.load(p_row + UNIT.BEFORE_Y) * BLOCK
        height, width, stride = Ho, Wo, 1
        i_channel = i_c
        b_before_mean, b_before_scale, b_before_shift = cell.three(p_out, tl.load(p_row + UNIT.BEFORE_NORM), i_c, m_c, CQ)
        ROW: tl.constexpr = CQ
        g_row = C
        i_g = i_chosen
    else:
        source = tl.load(p_row + UNIT.SOURCE)
        p_x = cell.state_of(p_inputs, p_saved, source, tl.load(p_row + UNIT.STATE))
        height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
        stride = tl.load(p_row + UNIT.STRIDE).to(tl.int32)
        i_channel = i_chosen
        b_before_mean, b_before_scale, b_before_shift = 0.0, 1.0, 0.0
        ROW: tl.constexpr = C
        middle = tl.load(p_row + UNIT.MIDDLE)
        g_row = tl.where(middle != 0, CQ, C)
        i_g = tl.where(middle != 0, i_c, i_chosen)
    b_mean, b_scale, b_shift = cell.three(p_norms, tl.load(p_row + UNIT.NORM), i_c, m_c, CQ)
    b_a, b_c0, b_c1 = cell.gradient_of_norm(p_coefficients, p_out, p_middles, p_row, m, middle_parts, i_c, m_c, CQ, BATCH)
    b_gradient = tl.full([BC, BC], 0.0, tl.float32)
    kind = p_weights.dtype.element_ty
    end = tl.minimum(part * per + per, m)
    for start in range(part * per, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        b_z = cell.depthwise_of(
            p_x, p_taps, kernel, i_channel, i_c, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, dilation,
            b_before_mean, b_before_scale, b_before_shift, ROW, SECOND, LARGEST,
        )  # fmt: skip
        b_factor = 1.0
        if PER_IMAGE:
            b_factor = cell.weights_of_images(p_edges, tl.load(p_row + UNIT.EDGE), i_image, m_pixel, m // (Ho * Wo))
            if not SECOND:
                b_factor = tl.where(middle != 0, 1.0, b_factor)
        b_dy = cell.gradient_tile(
            p_g, p_y, i_pixel, m_pixel, g_row, i_g, i_c, m_c, b_factor, b_mean, b_scale, b_shift, b_a, b_c0, b_c1, CQ
        )
        b_gradient = tl.dot(tl.trans(b_dy.to(kind)), b_z.to(kind), b_gradient, input_precision="ieee")
    p_matrix = p_parts + part.to(tl.int64) * numbers + tl.load(p_row + UNIT.POINTWISE)
    tl.store(p_matrix + i_c[:, None] * CQ + i_c[None, :], b_gradient, mask=m_c[:, None] & m_c[None, :])


@cell.kernel
def tap_gradient(
    p_inputs, p_saved, p_work, p_channels, p_scaled, p_parts, p_table,
    o_listed, o_units, H, W, Ho, Wo, m, per, parts, numbers,
    C: tl.constexpr, CQ: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr, CHOSEN: tl.constexpr, SECOND: tl.constexpr,
    LARGEST: tl.constexpr,
):  # fmt: skip
    """Compute a part of the gradient of one row of a depthwise kernel: sums over pixels of dz times each tap's input.

    A program for each row of the largest kernel (5 or 7), for each unit and part; those past a kernel's rows do nothing.
    """
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    i_tap = tl.program_id(0) // parts % LARGEST
    p_row = p_table + o_units + tl.load(p_table + o_listed + tl.program_id(0) // parts // LARGEST) * UNIT.SIZE
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    kernel, dilation = tl.load(p_row + UNIT.KERNEL).to(tl.int32), tl.load(p_row + UNIT.DILATION).to(tl.int32)
    p_dz = p_work + tl.load(p_row + UNIT.DZ) * BLOCK
    if SECOND:
        p_x = p_saved + tl.load(p_row + UNIT.BEFORE_Y) * BLOCK
        height, width, stride = Ho, Wo, 1
        i_channel = i_c
        b_mean, b_scale, b_shift = cell.three(p_scaled, tl.load(p_row + UNIT.BEFORE_NORM), i_c, m_c, CQ)
        ROW: tl.constexpr = CQ
    else:
        source = tl.load(p_row + UNIT.SOURCE)
        p_x = cell.state_of(p_inputs, p_saved, source, tl.load(p_row + UNIT.STATE))
        height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
        stride = tl.load(p_row + UNIT.STRIDE).to(tl.int32)
        i_channel = cell.channels_of(p_channels, tl.load(p_row + UNIT.EDGE), CQ, BC, CHOSEN)
        b_mean, b_scale, b_shift = 0.0, 1.0, 0.0
        ROW: tl.constexpr = C
    b_tap0 = tl.full([BP, BC], 0.0, tl.float32)
    b_tap1 = tl.full([BP, BC], 0.0, tl.float32)
    b_tap2 = tl.full([BP, BC], 0.0, tl.float32)
    b_tap3 = tl.full([BP, BC], 0.0, tl.float32)
    b_tap4 = tl.full([BP, BC], 0.0, tl.float32)
    if LARGEST == 7:
        b_tap5 = tl.full([BP, BC], 0.0, tl.float32)
        b_tap6 = tl.full([BP, BC], 0.0, tl.float32)
    reach = dilation * (kernel // 2)
    end = tl.where(i_tap < kernel, tl.minimum(part * per + per, m), 0)
    for start in range(part * per, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        b_dz = cell.rows_of(p_dz, i_pixel, m_pixel, i_c, m_c, CQ)
        i_tap_row = i_row * stride + (i_tap * dilation - reach)
        for j in tl.static_range(LARGEST):
            i_tap_column = i_column * stride + (j * dilation - reach)
            m_used = i_pixel < tl.where(j < kernel, end, 0)
            b_x, m_inside = cell.tile_at(p_x, i_image, i_tap_row, i_tap_column, m_used, height, width, i_channel, m_c, ROW)
            b_x = cell.rectified_input(b_x, m_inside, b_mean, b_scale, b_shift, SECOND)
            if j == 0:
                b_tap0 += b_dz * b_x
            elif j == 1:
                b_tap1 += b_dz * b_x
            elif j == 2:
                b_tap2 += b_dz * b_x
            elif j == 3:
                b_tap3 += b_dz * b_x
            elif j == 4:
                b_tap4 += b_dz * b_x
            elif j == 5:
                b_tap5 += b_dz * b_x
            else:
                b_tap6 += b_dz * b_x
    p_out = p_parts + part.to(tl.int64) * numbers + tl.load(p_row + UNIT.DEPTHWISE) + i_tap * kernel
    p_out = p_out + i_c * (kernel * kernel)
    m_out = i_c < tl.where(i_tap < kernel, CQ, 0)
    m_wide = i_c < tl.where((i_tap < kernel) & (kernel > 3), CQ, 0)
    tl.store(p_out, tl.sum(b_tap0, axis=0), mask=m_out)
    tl.store(p_out + 1, tl.sum(b_tap1, axis=0), mask=m_out)
    tl.store(p_out + 2, tl.sum(b_tap2, axis=0), mask=m_out)
    tl.store(p_out + 3, tl.sum(b_tap3, axis=0), mask=m_wide)
    tl.store(p_out + 4, tl.sum(b_tap4, axis=0), mask=m_wide)
    if LARGEST == 7:
        m_widest = i_c < tl.where((i_tap < kernel) & (kernel > 5), CQ, 0)
        tl.store(p_out + 5, tl.sum(b_tap5, axis=0), mask=m_widest)
        tl.store(p_out + 6, tl.sum(b_tap6, axis=0), mask=m_widest)


@cell.kernel
def dense_gradient(
    p_inputs, p_saved, p_work, p_weights, p_channels, p_edges, p_norms, p_coefficients, p_parts, p_table,
    o_listed, o_units, H, W, Ho, Wo, m, per, parts, numbers, most_taps,
    C: tl.constexpr, CQ: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr, CHOSEN: tl.constexpr, PER_IMAGE: tl.constexpr,
):  # fmt: skip
    """Compute a part of the gradient of one tap of a dense convolution: sum over pixels of dL/dy times the tap's input."""
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    t = tl.program_id(0) // parts % most_taps
    p_row = p_table + o_units + tl.load(p_table + o_listed + tl.program_id(0) // parts // most_taps) * UNIT.SIZE
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    source = tl.load(p_row + UNIT.SOURCE)
    p_x = cell.state_of(p_inputs, p_saved, source, tl.load(p_row + UNIT.STATE))
    height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
    stride, taps = tl.load(p_row + UNIT.STRIDE).to(tl.int32), tl.load(p_row + UNIT.TAPS).to(tl.int32)
    halves = tl.load(p_row + UNIT.HALVES)
    i_channel = cell.channels_of(p_channels, tl.load(p_row + UNIT.EDGE), CQ, BC, CHOSEN)
    p_g = p_work + tl.load(p_row + UNIT.GRAD) * BLOCK
    p_y = p_saved + tl.load(p_row + UNIT.Y) * BLOCK
    i_norm = tl.load(p_row + UNIT.NORM)
    b_mean, b_scale, b_shift = cell.three(p_norms, i_norm, i_c, m_c, CQ)
    b_a, b_c0, b_c1 = cell.three(p_coefficients, i_norm, i_c, m_c, CQ)
    rows, columns = cell.tap_offset(t, taps, halves)
    b_gradient = tl.full([BC, BC], 0.0, tl.float32)
    kind = p_weights.dtype.element_ty
    end = tl.where(t < taps, tl.minimum(part * per + per, m), 0)
    for start in range(part * per, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        b_x, _ = cell.tile_at(
            p_x, i_image, i_row * stride + rows, i_column * stride + columns, m_pixel, height, width, i_channel, m_c, C
        )
        b_factor = 1.0
        if PER_IMAGE:
            b_factor = cell.weights_of_images(p_edges, tl.load(p_row + UNIT.EDGE), i_image, m_pixel, m // (Ho * Wo))
        b_dy = cell.gradient_tile(
            p_g, p_y, i_pixel, m_pixel, C, i_channel, i_c, m_c, b_factor, b_mean, b_scale, b_shift, b_a, b_c0, b_c1, CQ
        )
        b_gradient = tl.dot(tl.trans(b_dy.to(kind)), cell.rectified(b_x).to(kind), b_gradient, input_precision="ieee")
    i_flat = i_c[:, None] * CQ + i_c[None, :]
    m_tap = (i_c < tl.where(t < taps, CQ, 0))[:, None] & m_c[None, :]
    m_tap = m_tap & (tl.where(halves != 0, i_c // (CQ // 2), t) == t)[:, None]
    p_out = p_parts + part.to(tl.int64) * numbers + tl.load(p_row + UNIT.POINTWISE)
    tl.store(p_out + tl.where(halves != 0, i_flat, i_flat * taps + t), b_gradient, mask=m_tap)


@cell.kernel
def reduce_parts(p_parts, p_grad_weights, parts, numbers, TILE: tl.constexpr):
    """Add the parts of the weights' gradients in order."""
    i_number = tl.program_id(0) * TILE + tl.arange(0, TILE)
    m_block = i_number < numbers
    b_total = tl.full([TILE], 0.0, tl.float64)
    for part in range(parts):
        p_part = p_parts + (tl.full([], 0, tl.int64) + part) * numbers
        b_total += tl.load(p_part + i_number, mask=m_block, other=0.0).to(tl.float64)
    tl.store(p_grad_weights + i_number, b_total.to(p_grad_weights.dtype.element_ty), mask=m_block)


def specimens(dtype: torch.dtype, widths: tuple[Width, ...] = WIDTHS) -> list[Specimen]:
    """Return each kernel as launched, at the widths of the usual networks."""
    kernels: dict[str, Any] = {"matrix_gradient": matrix_gradient, "tap_gradient": tap_gradient}
    kernels |= {"dense_gradient": dense_gradient, "reduce_parts": reduce_parts}
    return mixed_cell_specimens.specimens(kernels, dtype, widths)
