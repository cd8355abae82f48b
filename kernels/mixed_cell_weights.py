"""The kernels of mixed_cell that find the gradients of its weights, launched where those are wanted.

Letters and prefixes as in mixed_cell_parts.py, launches as in mixed_cell_forward.py. Each part has a row of the size of all
weights, and `collect` adds the rows in order.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from fastdarts.kernels import mixed_cell_parts as cell
from fastdarts.kernels import mixed_cell_specimens
from fastdarts.kernels.compile import Specimen
from fastdarts.kernels.mixed_cell_specimens import WIDTHS, Width


@triton.jit(do_not_specialize=cell.INTEGERS)
def matrix_gradient(
    p_x0,
    p_x1,
    p_x2,
    p_x3,
    p_saved,
    p_work,
    p_weights,
    p_channels,
    p_norms,
    p_coefficients,
    p_middles,
    p_parts,
    p_table,
    listed,
    units,
    H,
    W,
    Ho,
    Wo,
    m,
    per,
    parts,
    middle_parts,
    numbers,
    C: tl.constexpr,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    TILE: tl.constexpr,
    CHOSEN: tl.constexpr,
    BATCH: tl.constexpr,
    SECOND: tl.constexpr,
):
    """A part of dL/d(pointwise matrix) = sum over pixels of dL/dy times the depthwise output, which is formed again."""
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    p_row = p_table + units + tl.load(p_table + listed + tl.program_id(0) // parts) * cell.UNIT
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    kernel, dilation = tl.load(p_row + cell.UNIT_KERNEL).to(tl.int32), tl.load(p_row + cell.UNIT_DILATION).to(tl.int32)
    p_taps = p_weights + tl.load(p_row + cell.UNIT_DEPTHWISE)
    p_g = p_work + tl.load(p_row + cell.UNIT_GRAD) * cell.BLOCK
    p_y = p_saved + tl.load(p_row + cell.UNIT_Y) * cell.BLOCK
    chosen = cell.channels_of(p_channels, tl.load(p_row + cell.UNIT_EDGE), CQ, BC, CHOSEN)
    if SECOND:
        p_x = p_saved + tl.load(p_row + cell.UNIT_BEFORE_Y) * cell.BLOCK
        height, width, stride = Ho, Wo, 1
        i_channel = i_c
        before_mean, before_scale, before_shift = cell.three(p_norms, tl.load(p_row + cell.UNIT_BEFORE_NORM), i_c, m_c, CQ)
        ROW: tl.constexpr = CQ
        g_row = C
        i_g = chosen
    else:
        source = tl.load(p_row + cell.UNIT_SOURCE)
        p_x = cell.state_of(p_x0, p_x1, p_x2, p_x3, p_saved, source, tl.load(p_row + cell.UNIT_STATE))
        height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
        stride = tl.load(p_row + cell.UNIT_STRIDE).to(tl.int32)
        i_channel = chosen
        before_mean, before_scale, before_shift = 0.0, 1.0, 0.0
        ROW: tl.constexpr = C
        middle = tl.load(p_row + cell.UNIT_MIDDLE)
        g_row = tl.where(middle != 0, CQ, C)
        i_g = tl.where(middle != 0, i_c, chosen)
    mean, scale, shift = cell.three(p_norms, tl.load(p_row + cell.UNIT_NORM), i_c, m_c, CQ)
    a, c0, c1 = cell.gradient_of_norm(p_coefficients, p_norms, p_middles, p_row, m, middle_parts, i_c, m_c, CQ, BATCH)
    gradient = tl.full([BC, BC], 0.0, tl.float32)
    kind = p_weights.dtype.element_ty
    end = tl.minimum(part * per + per, m)
    for start in range(part * per, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        if kernel == 3:
            z = cell.depthwise(
                p_x, p_taps, i_channel, i_c, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, dilation,
                before_mean, before_scale, before_shift, ROW, 3, SECOND,
            )  # fmt: skip
        else:
            z = cell.depthwise(
                p_x, p_taps, i_channel, i_c, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, dilation,
                before_mean, before_scale, before_shift, ROW, 5, SECOND,
            )  # fmt: skip
        dy = cell.gradient_tile(p_g, p_y, i_pixel, m_pixel, g_row, i_g, i_c, m_c, mean, scale, shift, a, c0, c1, CQ)
        gradient = tl.dot(tl.trans(dy.to(kind)), z.to(kind), gradient, input_precision="ieee")
    p_out = p_parts + part.to(tl.int64) * numbers + tl.load(p_row + cell.UNIT_POINTWISE)
    tl.store(p_out + i_c[:, None] * CQ + i_c[None, :], gradient, mask=m_c[:, None] & m_c[None, :])


@triton.jit(do_not_specialize=cell.INTEGERS)
def tap_gradient(
    p_x0,
    p_x1,
    p_x2,
    p_x3,
    p_saved,
    p_work,
    p_channels,
    p_norms,
    p_parts,
    p_table,
    listed,
    units,
    H,
    W,
    Ho,
    Wo,
    m,
    per,
    parts,
    numbers,
    C: tl.constexpr,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    TILE: tl.constexpr,
    CHOSEN: tl.constexpr,
    SECOND: tl.constexpr,
):
    """A part of the gradient of one row of a depthwise kernel: sums over pixels of dz times what each tap reads.

    Five programs for each unit and part: those past a kernel's rows do nothing.
    """
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    i_tap = tl.program_id(0) // parts % 5
    p_row = p_table + units + tl.load(p_table + listed + tl.program_id(0) // parts // 5) * cell.UNIT
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    kernel, dilation = tl.load(p_row + cell.UNIT_KERNEL).to(tl.int32), tl.load(p_row + cell.UNIT_DILATION).to(tl.int32)
    p_dz = p_work + tl.load(p_row + cell.UNIT_DZ) * cell.BLOCK
    if SECOND:
        p_x = p_saved + tl.load(p_row + cell.UNIT_BEFORE_Y) * cell.BLOCK
        height, width, stride = Ho, Wo, 1
        i_channel = i_c
        mean, scale, shift = cell.three(p_norms, tl.load(p_row + cell.UNIT_BEFORE_NORM), i_c, m_c, CQ)
        ROW: tl.constexpr = CQ
    else:
        source = tl.load(p_row + cell.UNIT_SOURCE)
        p_x = cell.state_of(p_x0, p_x1, p_x2, p_x3, p_saved, source, tl.load(p_row + cell.UNIT_STATE))
        height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
        stride = tl.load(p_row + cell.UNIT_STRIDE).to(tl.int32)
        i_channel = cell.channels_of(p_channels, tl.load(p_row + cell.UNIT_EDGE), CQ, BC, CHOSEN)
        mean, scale, shift = 0.0, 1.0, 0.0
        ROW: tl.constexpr = C
    tap0 = tl.full([BP, BC], 0.0, tl.float32)
    tap1 = tl.full([BP, BC], 0.0, tl.float32)
    tap2 = tl.full([BP, BC], 0.0, tl.float32)
    tap3 = tl.full([BP, BC], 0.0, tl.float32)
    tap4 = tl.full([BP, BC], 0.0, tl.float32)
    reach = dilation * (kernel // 2)
    end = tl.where(i_tap < kernel, tl.minimum(part * per + per, m), 0)
    for start in range(part * per, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        dz = cell.rows_of(p_dz, i_pixel, m_pixel, i_c, m_c, CQ)
        row = i_row * stride + (i_tap * dilation - reach)
        for j in tl.static_range(5):
            column = i_column * stride + (j * dilation - reach)
            m_used = i_pixel < tl.where(j < kernel, end, 0)
            x, m_inside = cell.tile_at(p_x, i_image, row, column, m_used, height, width, i_channel, m_c, ROW)
            x = cell.rectified_input(x, m_inside, mean, scale, shift, SECOND)
            if j == 0:
                tap0 += dz * x
            elif j == 1:
                tap1 += dz * x
            elif j == 2:
                tap2 += dz * x
            elif j == 3:
                tap3 += dz * x
            else:
                tap4 += dz * x
    p_out = p_parts + part.to(tl.int64) * numbers + tl.load(p_row + cell.UNIT_DEPTHWISE) + i_tap * kernel
    p_out = p_out + i_c * (kernel * kernel)
    m_out = i_c < tl.where(i_tap < kernel, CQ, 0)
    m_wide = i_c < tl.where((i_tap < kernel) & (kernel > 3), CQ, 0)
    tl.store(p_out, tl.sum(tap0, axis=0), mask=m_out)
    tl.store(p_out + 1, tl.sum(tap1, axis=0), mask=m_out)
    tl.store(p_out + 2, tl.sum(tap2, axis=0), mask=m_out)
    tl.store(p_out + 3, tl.sum(tap3, axis=0), mask=m_wide)
    tl.store(p_out + 4, tl.sum(tap4, axis=0), mask=m_wide)


@triton.jit(do_not_specialize=cell.INTEGERS)
def dense_gradient(
    p_x0,
    p_x1,
    p_x2,
    p_x3,
    p_saved,
    p_work,
    p_weights,
    p_channels,
    p_norms,
    p_coefficients,
    p_parts,
    p_table,
    listed,
    units,
    H,
    W,
    Ho,
    Wo,
    m,
    per,
    parts,
    numbers,
    most_taps,
    C: tl.constexpr,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    TILE: tl.constexpr,
    CHOSEN: tl.constexpr,
):
    """A part of the gradient of one tap of a dense convolution: sum over pixels of dL/dy times what the tap reads."""
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    t = tl.program_id(0) // parts % most_taps
    p_row = p_table + units + tl.load(p_table + listed + tl.program_id(0) // parts // most_taps) * cell.UNIT
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    source = tl.load(p_row + cell.UNIT_SOURCE)
    p_x = cell.state_of(p_x0, p_x1, p_x2, p_x3, p_saved, source, tl.load(p_row + cell.UNIT_STATE))
    height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
    stride, taps = tl.load(p_row + cell.UNIT_STRIDE).to(tl.int32), tl.load(p_row + cell.UNIT_TAPS).to(tl.int32)
    halves = tl.load(p_row + cell.UNIT_HALVES)
    i_channel = cell.channels_of(p_channels, tl.load(p_row + cell.UNIT_EDGE), CQ, BC, CHOSEN)
    p_g = p_work + tl.load(p_row + cell.UNIT_GRAD) * cell.BLOCK
    p_y = p_saved + tl.load(p_row + cell.UNIT_Y) * cell.BLOCK
    i_norm = tl.load(p_row + cell.UNIT_NORM)
    mean, scale, shift = cell.three(p_norms, i_norm, i_c, m_c, CQ)
    a, c0, c1 = cell.three(p_coefficients, i_norm, i_c, m_c, CQ)
    rows, columns = cell.tap_offset(t, taps, halves)
    gradient = tl.full([BC, BC], 0.0, tl.float32)
    kind = p_weights.dtype.element_ty
    end = tl.where(t < taps, tl.minimum(part * per + per, m), 0)
    for start in range(part * per, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        x, _ = cell.tile_at(
            p_x, i_image, i_row * stride + rows, i_column * stride + columns, m_pixel, height, width, i_channel, m_c, C
        )
        dy = cell.gradient_tile(p_g, p_y, i_pixel, m_pixel, C, i_channel, i_c, m_c, mean, scale, shift, a, c0, c1, CQ)
        gradient = tl.dot(tl.trans(dy.to(kind)), cell.rectified(x).to(kind), gradient, input_precision="ieee")
    i_flat = i_c[:, None] * CQ + i_c[None, :]
    m_tap = (i_c < tl.where(t < taps, CQ, 0))[:, None] & m_c[None, :]
    m_tap = m_tap & (tl.where(halves != 0, i_c // (CQ // 2), t) == t)[:, None]
    p_out = p_parts + part.to(tl.int64) * numbers + tl.load(p_row + cell.UNIT_POINTWISE)
    tl.store(p_out + tl.where(halves != 0, i_flat, i_flat * taps + t), gradient, mask=m_tap)


@triton.jit(do_not_specialize=cell.INTEGERS)
def collect(p_parts, p_grad_weights, parts, numbers, TILE: tl.constexpr):
    """The weights' gradients: the parts, added in order."""
    i_number = tl.program_id(0) * TILE + tl.arange(0, TILE)
    mask = i_number < numbers
    total = tl.full([TILE], 0.0, tl.float64)
    for part in range(parts):
        p_part = p_parts + (tl.full([], 0, tl.int64) + part) * numbers
        total += tl.load(p_part + i_number, mask=mask, other=0.0).to(tl.float64)
    tl.store(p_grad_weights + i_number, total.to(p_grad_weights.dtype.element_ty), mask=mask)


def specimens(dtype: torch.dtype, widths: tuple[Width, ...] = WIDTHS) -> list[Specimen]:
    """Each kernel as a launch has it, at the widths of the usual networks."""
    kernels: dict[str, Any] = {"matrix_gradient": matrix_gradient, "tap_gradient": tap_gradient}
    kernels |= {"dense_gradient": dense_gradient, "collect": collect}
    return mixed_cell_specimens.specimens(kernels, dtype, widths)
