"""The backward kernels of mixed_cell that find gradients of states: through nodes, convolutions and pools.

Letters and prefixes as in mixed_cell_parts.py, launches as in mixed_cell_forward.py. Nothing is added up by two programs: a
state's gradient is pulled, pixel by pixel, from what the edges that leave it left behind (dz, the pools' gradients).
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
def product(
    p_saved,
    p_work,
    p_weights,
    p_channels,
    p_norms,
    p_coefficients,
    p_middles,
    p_table,
    listed,
    units,
    m,
    per,
    parts,
    middle_parts,
    C: tl.constexpr,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    TILE: tl.constexpr,
    CHOSEN: tl.constexpr,
    BATCH: tl.constexpr,
):
    """dz = dL/d(depthwise output) = pointwise matrix, transposed, times dL/dy."""
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    p_row = p_table + units + tl.load(p_table + listed + tl.program_id(0) // parts) * cell.UNIT
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    middle = tl.load(p_row + cell.UNIT_MIDDLE)
    p_g = p_work + tl.load(p_row + cell.UNIT_GRAD) * cell.BLOCK
    g_row = tl.where(middle != 0, CQ, C)
    i_g = tl.where(middle != 0, i_c, cell.channels_of(p_channels, tl.load(p_row + cell.UNIT_EDGE), CQ, BC, CHOSEN))
    p_y = p_saved + tl.load(p_row + cell.UNIT_Y) * cell.BLOCK
    p_dz = p_work + tl.load(p_row + cell.UNIT_DZ) * cell.BLOCK
    mean, scale, shift = cell.three(p_norms, tl.load(p_row + cell.UNIT_NORM), i_c, m_c, CQ)
    a, c0, c1 = cell.gradient_of_norm(p_coefficients, p_norms, p_middles, p_row, m, middle_parts, i_c, m_c, CQ, BATCH)
    p_matrix = p_weights + tl.load(p_row + cell.UNIT_POINTWISE)
    matrix = tl.load(p_matrix + i_c[:, None] * CQ + i_c[None, :], mask=m_c[:, None] & m_c[None, :], other=0.0)
    end = tl.minimum(part * per + per, m)
    for start in range(part * per, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        dy = cell.gradient_tile(p_g, p_y, i_pixel, m_pixel, g_row, i_g, i_c, m_c, mean, scale, shift, a, c0, c1, CQ)
        dz = tl.dot(dy.to(matrix.dtype), matrix, input_precision="ieee").to(matrix.dtype)
        tl.store(p_dz + i_pixel.to(tl.int64)[:, None] * CQ + i_c[None, :], dz, mask=m_pixel[:, None] & m_c[None, :])


@triton.jit(do_not_specialize=cell.INTEGERS)
def middle(
    p_saved,
    p_work,
    p_weights,
    p_norms,
    p_middles,
    p_table,
    listed,
    units,
    Ho,
    Wo,
    m,
    per,
    parts,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    TILE: tl.constexpr,
    BATCH: tl.constexpr,
):
    """Between the halves: d = dL/dxhat of a first half from the second's dz; the sums of d and of d xhat."""
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    p_row = p_table + units + tl.load(p_table + listed + tl.program_id(0) // parts) * cell.UNIT
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    kernel = tl.load(p_row + cell.UNIT_KERNEL)
    p_taps = p_weights + tl.load(p_row + cell.UNIT_DEPTHWISE)
    p_dz = p_work + tl.load(p_row + cell.UNIT_DZ) * cell.BLOCK
    p_d = p_work + tl.load(p_row + cell.UNIT_BEFORE_GRAD) * cell.BLOCK
    p_y = p_saved + tl.load(p_row + cell.UNIT_BEFORE_Y) * cell.BLOCK
    mean, scale, shift = cell.three(p_norms, tl.load(p_row + cell.UNIT_BEFORE_NORM), i_c, m_c, CQ)
    first = tl.full([BC], 0.0, tl.float32)
    second = tl.full([BC], 0.0, tl.float32)
    end = tl.minimum(part * per + per, m)
    for start in range(part * per, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        if kernel == 3:
            d = cell.depthwise_transposed(p_dz, p_taps, i_c, m_c, i_image, i_row, i_column, m_pixel, Ho, Wo, 1, 1, CQ, 3)
        else:
            d = cell.depthwise_transposed(p_dz, p_taps, i_c, m_c, i_image, i_row, i_column, m_pixel, Ho, Wo, 1, 1, CQ, 5)
        xhat = cell.normalised(cell.rows_of(p_y, i_pixel, m_pixel, i_c, m_c, CQ), mean, scale, shift)
        d = tl.where(xhat > 0, d, 0.0).to(p_work.dtype.element_ty)
        tl.store(p_d + i_pixel.to(tl.int64)[:, None] * CQ + i_c[None, :], d, mask=m_pixel[:, None] & m_c[None, :])
        if BATCH:
            d = tl.where(m_pixel[:, None], d.to(tl.float32), 0.0)
            first += tl.sum(d, axis=0)
            second += tl.sum(d * xhat, axis=0)
    if BATCH:
        p_part = p_middles + (tl.load(p_row + cell.UNIT_SLOT) * parts + part) * 2 * CQ + i_c
        tl.store(p_part, first, mask=m_c)
        tl.store(p_part + CQ, second, mask=m_c)


@triton.jit(do_not_specialize=cell.INTEGERS)
def pool_gradient(
    p_x0,
    p_x1,
    p_x2,
    p_x3,
    p_saved,
    p_work,
    p_channels,
    p_ops,
    p_edges,
    p_norms,
    p_coefficients,
    p_table,
    listed,
    pools_at,
    edges_at,
    H,
    W,
    Ho,
    Wo,
    m,
    per,
    parts,
    columns,
    C: tl.constexpr,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    TILE: tl.constexpr,
    CHOSEN: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """Gradients of the 3x3 maximum and mean of a state, summed over the edges that pool it; where each maximum lies."""
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    p_row = p_table + pools_at + tl.load(p_table + listed + tl.program_id(0) // parts) * cell.POOL
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    source, stride = tl.load(p_row + cell.POOL_SOURCE), tl.load(p_row + cell.POOL_STRIDE).to(tl.int32)
    p_x = cell.state_of(p_x0, p_x1, p_x2, p_x3, p_saved, source, tl.load(p_row + cell.POOL_STATE))
    height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
    i_channel = cell.channels_of(p_channels, tl.load(p_row + cell.POOL_EDGE), CQ, BC, CHOSEN)
    p_dmax = p_work + tl.load(p_row + cell.POOL_DMAX) * cell.BLOCK
    p_place = p_work + tl.load(p_row + cell.POOL_PLACE) * cell.BLOCK
    p_davg = p_work + tl.load(p_row + cell.POOL_DAVG) * cell.BLOCK
    first, last = tl.load(p_row + cell.POOL_LEAVING).to(tl.int32), tl.load(p_row + cell.POOL_LEAVING_END).to(tl.int32)
    kind = p_work.dtype.element_ty
    end = tl.minimum(part * per + per, m)
    for start in range(part * per, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        best, place, average, count = cell.pools(
            p_x, i_channel, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, C
        )
        dmax = tl.full([BP, BC], 0.0, tl.float32)
        davg = tl.full([BP, BC], 0.0, tl.float32)
        for i in range(first, last):
            i_edge = tl.load(p_table + i)
            p_edge = p_table + edges_at + i_edge * cell.EDGE
            p_g = p_work + tl.load(p_edge + cell.EDGE_GRAD) * cell.BLOCK
            g = cell.rows_of(p_g, i_pixel, m_pixel, i_channel, m_c, C)
            if tl.load(p_edge + cell.EDGE_MAX) >= 0:
                mean, scale, shift = cell.three(p_norms, tl.load(p_edge + cell.EDGE_MAX_NORM), i_c, m_c, CQ)
                a, c0, c1 = cell.three(p_coefficients, tl.load(p_edge + cell.EDGE_MAX_NORM), i_c, m_c, CQ)
                dmax += a[None, :] * (g - c0[None, :] - cell.normalised(best, mean, scale, shift) * c1[None, :])
            if tl.load(p_edge + cell.EDGE_AVG) >= 0:
                mean, scale, shift = cell.three(p_norms, tl.load(p_edge + cell.EDGE_AVG_NORM), i_c, m_c, CQ)
                a, c0, c1 = cell.three(p_coefficients, tl.load(p_edge + cell.EDGE_AVG_NORM), i_c, m_c, CQ)
                davg += a[None, :] * (g - c0[None, :] - cell.normalised(average, mean, scale, shift) * c1[None, :])
            if tl.load(p_edge + cell.EDGE_PLAIN) >= 0:
                weight = tl.load(p_ops + i_edge * columns + tl.load(p_edge + cell.EDGE_PLAIN)).to(tl.float32)
                if WEIGHTED:
                    weight *= tl.load(p_edges + i_edge).to(tl.float32)
                davg += weight * g
        o_out = i_pixel.to(tl.int64)[:, None] * CQ + i_c[None, :]
        mask = m_pixel[:, None] & m_c[None, :]
        tl.store(p_dmax + o_out, dmax.to(kind), mask=mask)
        tl.store(p_place + o_out, place.to(tl.float32).to(kind), mask=mask)
        tl.store(p_davg + o_out, (davg / count[:, None]).to(kind), mask=mask)


@triton.jit(do_not_specialize=cell.INTEGERS)
def state_gradient(
    p_x0,
    p_x1,
    p_x2,
    p_x3,
    p_saved,
    p_work,
    p_grad,
    p_dx0,
    p_dx1,
    p_dx2,
    p_dx3,
    p_weights,
    p_channels,
    p_places,
    p_ops,
    p_edges,
    p_norms,
    p_coefficients,
    p_table,
    listed,
    states_at,
    edges_at,
    pools_at,
    units,
    H,
    W,
    Ho,
    Wo,
    pixels,
    per,
    parts,
    columns,
    C: tl.constexpr,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    NODES: tl.constexpr,
    CHOSEN: tl.constexpr,
    WEIGHTED: tl.constexpr,
    DENSE: tl.constexpr,
):
    """A state's gradient: the output's share, and what each edge that leaves the state gives back.

    A node's is written in the order in which edges into it have their channels: those that come through first, then those
    that pass by. Tiles of channels as in `node`, here of the state's own channels.
    """
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    i_tile = tl.program_id(0) // parts % TILES
    p_row = p_table + states_at + tl.load(p_table + listed + tl.program_id(0) // parts // TILES) * cell.STATE
    i_lane = tl.arange(0, BC)
    if CHOSEN:
        i_channel = i_tile * BC + i_lane
        m_channel = i_channel < C
        i_place = i_channel
        is_through = i_tile >= 0
    else:
        i_channel = i_tile * CQ + i_lane
        m_channel = i_lane < CQ
        i_place = i_channel % (C // CQ) * CQ + i_channel // (C // CQ)
        is_through = i_tile == 0
    source, i_node = tl.load(p_row + cell.STATE_SOURCE), tl.load(p_row + cell.STATE_NODE)
    p_x = cell.state_of(p_x0, p_x1, p_x2, p_x3, p_saved, source, tl.load(p_row + cell.STATE_STATE))
    p_out = cell.state_of(p_dx0, p_dx1, p_dx2, p_dx3, p_work, source, tl.load(p_row + cell.STATE_GRAD))
    i_place = tl.where(i_node >= 0, i_place, i_channel)
    height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
    first, last = tl.load(p_row + cell.STATE_LEAVING).to(tl.int32), tl.load(p_row + cell.STATE_LEAVING_END).to(tl.int32)
    end = tl.minimum(part * per + per, pixels)
    for start in range(part * per, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, height, width)
        total = tl.full([BP, BC], 0.0, tl.float32)
        behind_relu = tl.full([BP, BC], 0.0, tl.float32)
        if i_node >= 0:
            total += cell.rows_of(p_grad + i_node * C, i_pixel, m_pixel, i_channel, m_channel, NODES * C)
        for i in range(first, last):
            i_edge = tl.load(p_table + i).to(tl.int32)
            p_edge = p_table + edges_at + i_edge * cell.EDGE
            stride = tl.load(p_edge + cell.EDGE_STRIDE).to(tl.int32)
            p_g = p_work + tl.load(p_edge + cell.EDGE_GRAD) * cell.BLOCK
            i_c = cell.through_of(p_places, i_edge, i_tile, i_channel, m_channel, C, CHOSEN)
            m_c = i_c >= 0
            beta = 1.0
            if WEIGHTED:
                beta = tl.load(p_edges + i_edge).to(tl.float32)
            if is_through:
                last_unit = tl.load(p_edge + cell.EDGE_UNITS_END).to(tl.int32)
                for i_unit in range(tl.load(p_edge + cell.EDGE_UNITS).to(tl.int32), last_unit):
                    p_unit = p_table + units + i_unit * cell.UNIT
                    kernel, dilation = tl.load(p_unit + cell.UNIT_KERNEL), tl.load(p_unit + cell.UNIT_DILATION).to(tl.int32)
                    p_taps = p_weights + tl.load(p_unit + cell.UNIT_DEPTHWISE)
                    p_dz = p_work + tl.load(p_unit + cell.UNIT_DZ) * cell.BLOCK
                    if kernel == 3:
                        behind_relu += cell.depthwise_transposed(
                            p_dz, p_taps, i_c, m_c, i_image, i_row, i_column, m_pixel, Ho, Wo, stride, dilation, CQ, 3
                        )
                    if kernel == 5:
                        behind_relu += cell.depthwise_transposed(
                            p_dz, p_taps, i_c, m_c, i_image, i_row, i_column, m_pixel, Ho, Wo, stride, dilation, CQ, 5
                        )
                    if DENSE:
                        taps, halves = tl.load(p_unit + cell.UNIT_TAPS).to(tl.int32), tl.load(p_unit + cell.UNIT_HALVES)
                        i_out = tl.arange(0, BC)
                        m_out = i_out < CQ
                        i_g = cell.channels_of(p_channels, i_edge, CQ, BC, CHOSEN)
                        i_norm = tl.load(p_unit + cell.UNIT_NORM)
                        mean, scale, shift = cell.three(p_norms, i_norm, i_out, m_out, CQ)
                        a, c0, c1 = cell.three(p_coefficients, i_norm, i_out, m_out, CQ)
                        p_y = p_saved + tl.load(p_unit + cell.UNIT_Y) * cell.BLOCK
                        p_matrix = p_weights + tl.load(p_unit + cell.UNIT_POINTWISE)
                        for t in range(taps):
                            rows, cols = cell.tap_offset(t, taps, halves)
                            row, column = i_row - rows, i_column - cols
                            m_met = m_pixel & (((row | column) & (stride - 1)) == 0) & (row >= 0) & (column >= 0)
                            row, column = row >> (stride - 1), column >> (stride - 1)
                            m_met = m_met & (row < Ho) & (column < Wo)
                            i_met = (i_image * Ho + row) * Wo + column
                            dy = cell.gradient_tile(
                                p_g, p_y, i_met, m_met, C, i_g, i_out, m_out, mean, scale, shift, a, c0, c1, CQ
                            )
                            matrix = cell.dense_matrix(
                                p_matrix, t, taps, halves, i_out[:, None], m_out[:, None], i_c[None, :], m_c[None, :], CQ
                            )
                            behind_relu = tl.dot(dy.to(matrix.dtype), matrix, behind_relu, input_precision="ieee")
                i_skip = tl.load(p_edge + cell.EDGE_SKIP)
                if i_skip >= 0:
                    weight = beta * tl.load(p_ops + i_edge * columns + i_skip).to(tl.float32)
                    total += weight * cell.rows_of(p_g, i_pixel, m_pixel, i_channel, m_c, C)
                i_pool = tl.load(p_edge + cell.EDGE_POOL)
                if i_pool >= 0:
                    p_pool = p_table + pools_at + i_pool * cell.POOL
                    p_dmax = p_work + tl.load(p_pool + cell.POOL_DMAX) * cell.BLOCK
                    p_max = p_work + tl.load(p_pool + cell.POOL_PLACE) * cell.BLOCK
                    p_davg = p_work + tl.load(p_pool + cell.POOL_DAVG) * cell.BLOCK
                    for i_window in range(9):
                        row, column = i_row + 1 - i_window // 3, i_column + 1 - i_window % 3
                        m_met = m_pixel & (((row | column) & (stride - 1)) == 0)
                        row, column = row >> (stride - 1), column >> (stride - 1)
                        dmax, _ = cell.tile_at(p_dmax, i_image, row, column, m_met, Ho, Wo, i_c, m_c, CQ)
                        place, _ = cell.tile_at(p_max, i_image, row, column, m_met, Ho, Wo, i_c, m_c, CQ)
                        davg, _ = cell.tile_at(p_davg, i_image, row, column, m_met, Ho, Wo, i_c, m_c, CQ)
                        total += davg + tl.where(place == i_window, dmax, 0.0)
            if C > CQ:
                m_by = m_channel & (i_c < 0)
                if stride == 1:
                    total += beta * cell.rows_of(p_g, i_pixel, m_pixel, i_channel, m_by, C)
                else:
                    row, column = i_row >> 1, i_column >> 1
                    _, place = cell.largest_of_four(p_x, i_channel, m_by, i_image, row, column, m_pixel, height, width, C)
                    g, _ = cell.tile_at(p_g, i_image, row, column, m_pixel, Ho, Wo, i_channel, m_by, C)
                    mine = ((i_row & 1) * 2 + (i_column & 1))[:, None]
                    total += tl.where(place == mine, beta * g, 0.0)
        if first < last:
            x = cell.rows_of(p_x, i_pixel, m_pixel, i_channel, m_channel, C)
            total += tl.where(x > 0, behind_relu, 0.0)
        o_out = i_pixel.to(tl.int64)[:, None] * C + i_place[None, :]
        tl.store(p_out + o_out, total.to(p_work.dtype.element_ty), mask=m_pixel[:, None] & m_channel[None, :])


def specimens(dtype: torch.dtype, widths: tuple[Width, ...] = WIDTHS) -> list[Specimen]:
    """Each kernel as a launch has it, at the widths of the usual networks."""
    kernels: dict[str, Any] = {"product": product, "middle": middle}
    kernels |= {"pool_gradient": pool_gradient, "state_gradient": state_gradient}
    return mixed_cell_specimens.specimens(kernels, dtype, widths)
