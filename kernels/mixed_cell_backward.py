"""Backward kernels of mixed_cell for the gradients of states: through nodes, convolutions and pools.

Notation as in mixed_cell_parts.py, launches as in mixed_cell_forward.py. No two programs add to the same number: a state's
gradient is gathered, pixel by pixel, from the gradients that its outgoing edges stored (dz, the pools' gradients).
"""

from typing import Any

import torch
import triton.language as tl

from fastdarts.kernels import mixed_cell_parts as cell
from fastdarts.kernels import mixed_cell_specimens
from fastdarts.kernels.compile import Specimen
from fastdarts.kernels.mixed_cell_parts import BLOCK, EDGE, POOL, STATE, UNIT
from fastdarts.kernels.mixed_cell_specimens import WIDTHS, Width


@cell.kernel
def product(
    p_saved, p_work, p_weights, p_channels, p_edges, p_norms, p_scaled, p_coefficients, p_middles, p_table,
    o_listed, o_units, Ho, Wo, m, per, parts, middle_parts,
    C: tl.constexpr, CQ: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr, CHOSEN: tl.constexpr, BATCH: tl.constexpr,
    AFFINE: tl.constexpr, PER_IMAGE: tl.constexpr,
):  # fmt: skip
    """Compute dz = dL/d(depthwise output) = pointwise matrix, transposed, times dL/dy."""
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    p_row = p_table + o_units + tl.load(p_table + o_listed + tl.program_id(0) // parts) * UNIT.SIZE
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    middle = tl.load(p_row + UNIT.MIDDLE)
    p_g = p_work + tl.load(p_row + UNIT.GRAD) * BLOCK
    g_row = tl.where(middle != 0, CQ, C)
    i_g = tl.where(middle != 0, i_c, cell.channels_of(p_channels, tl.load(p_row + UNIT.EDGE), CQ, BC, CHOSEN))
    p_y = p_saved + tl.load(p_row + UNIT.Y) * BLOCK
    p_dz = p_work + tl.load(p_row + UNIT.DZ) * BLOCK
    b_mean, b_scale, b_shift = cell.three(p_norms, tl.load(p_row + UNIT.NORM), i_c, m_c, CQ)
    p_out = p_scaled if AFFINE else p_norms
    b_a, b_c0, b_c1 = cell.gradient_of_norm(p_coefficients, p_out, p_middles, p_row, m, middle_parts, i_c, m_c, CQ, BATCH)
    p_matrix = p_weights + tl.load(p_row + UNIT.POINTWISE)
    b_matrix = tl.load(p_matrix + i_c[:, None] * CQ + i_c[None, :], mask=m_c[:, None] & m_c[None, :], other=0.0)
    end = tl.minimum(part * per + per, m)
    for start in range(part * per, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        b_factor = 1.0
        if PER_IMAGE:
            i_edge = tl.load(p_row + UNIT.EDGE)
            b_factor = cell.weights_of_images(p_edges, i_edge, i_pixel // (Ho * Wo), m_pixel, m // (Ho * Wo))
            b_factor = tl.where(middle != 0, 1.0, b_factor)
        b_dy = cell.gradient_tile(
            p_g, p_y, i_pixel, m_pixel, g_row, i_g, i_c, m_c, b_factor, b_mean, b_scale, b_shift, b_a, b_c0, b_c1, CQ
        )
        b_dz = tl.dot(b_dy.to(b_matrix.dtype), b_matrix, input_precision="ieee").to(b_matrix.dtype)
        tl.store(p_dz + i_pixel.to(tl.int64)[:, None] * CQ + i_c[None, :], b_dz, mask=m_pixel[:, None] & m_c[None, :])


@cell.kernel
def bn_backward_inner(
    p_saved, p_work, p_weights, p_norms, p_scaled, p_middles, p_table,
    o_listed, o_units, Ho, Wo, m, per, parts,
    CQ: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr, AFFINE: tl.constexpr, SUMMED: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Compute d = dL/d(BN of a first half) from the second half's dz; also the sums of d and of d xhat."""
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    p_row = p_table + o_units + tl.load(p_table + o_listed + tl.program_id(0) // parts) * UNIT.SIZE
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    kernel = tl.load(p_row + UNIT.KERNEL)
    p_taps = p_weights + tl.load(p_row + UNIT.DEPTHWISE)
    p_dz = p_work + tl.load(p_row + UNIT.DZ) * BLOCK
    p_d = p_work + tl.load(p_row + UNIT.BEFORE_GRAD) * BLOCK
    p_y = p_saved + tl.load(p_row + UNIT.BEFORE_Y) * BLOCK
    b_mean, b_scale, b_shift = cell.three(p_norms, tl.load(p_row + UNIT.BEFORE_NORM), i_c, m_c, CQ)
    _, b_out_scale, b_out_shift = cell.three(p_scaled, tl.load(p_row + UNIT.BEFORE_NORM), i_c, m_c, CQ)
    b_first = tl.full([BC], 0.0, tl.float32)
    b_second = tl.full([BC], 0.0, tl.float32)
    end = tl.minimum(part * per + per, m)
    for start in range(part * per, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        if kernel == 3:
            b_d = cell.depthwise_transposed(p_dz, p_taps, i_c, m_c, i_image, i_row, i_column, m_pixel, Ho, Wo, 1, 1, CQ, 3)
        elif LARGEST == 5 or kernel == 5:
            b_d = cell.depthwise_transposed(p_dz, p_taps, i_c, m_c, i_image, i_row, i_column, m_pixel, Ho, Wo, 1, 1, CQ, 5)
        else:
            b_d = cell.depthwise_transposed(
                p_dz, p_taps, i_c, m_c, i_image, i_row, i_column, m_pixel, Ho, Wo, 1, 1, CQ, LARGEST
            )
        b_y = cell.rows_of(p_y, i_pixel, m_pixel, i_c, m_c, CQ)
        b_xhat = cell.normalised(b_y, b_mean, b_scale, b_shift)
        b_out = cell.normalised(b_y, b_mean, b_out_scale, b_out_shift) if AFFINE else b_xhat
        b_d = tl.where(b_out > 0, b_d, 0.0).to(p_work.dtype.element_ty)
        tl.store(p_d + i_pixel.to(tl.int64)[:, None] * CQ + i_c[None, :], b_d, mask=m_pixel[:, None] & m_c[None, :])
        if SUMMED:
            b_d = tl.where(m_pixel[:, None], b_d.to(tl.float32), 0.0)
            b_first += tl.sum(b_d, axis=0)
            b_second += tl.sum(b_d * b_xhat, axis=0)
    if SUMMED:
        p_part = p_middles + (tl.load(p_row + UNIT.SLOT) * parts + part) * 2 * CQ + i_c
        tl.store(p_part, b_first, mask=m_c)
        tl.store(p_part + CQ, b_second, mask=m_c)


@cell.kernel
def pool_gradient(
    p_inputs, p_saved, p_work, p_channels, p_ops, p_edges, p_norms, p_coefficients, p_table,
    o_listed, o_pools, o_edges, o_plain_max, H, W, Ho, Wo, m, per, parts, columns,
    C: tl.constexpr, CQ: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr, CHOSEN: tl.constexpr, WEIGHTED: tl.constexpr,
    PLAIN_MAX: tl.constexpr,
):  # fmt: skip
    """Compute gradients of a state's 3x3 maximum and mean, summed over the edges that pool it; also each maximum's position."""
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    p_row = p_table + o_pools + tl.load(p_table + o_listed + tl.program_id(0) // parts) * POOL.SIZE
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    source, stride = tl.load(p_row + POOL.SOURCE), tl.load(p_row + POOL.STRIDE).to(tl.int32)
    p_x = cell.state_of(p_inputs, p_saved, source, tl.load(p_row + POOL.STATE))
    height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
    i_channel = cell.channels_of(p_channels, tl.load(p_row + POOL.EDGE), CQ, BC, CHOSEN)
    p_dmax = p_work + tl.load(p_row + POOL.DMAX) * BLOCK
    p_place = p_work + tl.load(p_row + POOL.PLACE) * BLOCK
    p_davg = p_work + tl.load(p_row + POOL.DAVG) * BLOCK
    first, last = tl.load(p_row + POOL.LEAVING).to(tl.int32), tl.load(p_row + POOL.LEAVING_END).to(tl.int32)
    kind = p_work.dtype.element_ty
    end = tl.minimum(part * per + per, m)
    for start in range(part * per, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        b_best, b_place, b_average, b_count = cell.pools(
            p_x, i_channel, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, C
        )
        b_dmax = tl.full([BP, BC], 0.0, tl.float32)
        b_davg = tl.full([BP, BC], 0.0, tl.float32)
        for i in range(first, last):
            i_edge = tl.load(p_table + i)
            p_edge = p_table + o_edges + i_edge * EDGE.SIZE
            p_g = p_work + tl.load(p_edge + EDGE.GRAD) * BLOCK
            b_g = cell.rows_of(p_g, i_pixel, m_pixel, i_channel, m_c, C)
            if WEIGHTED == 2:
                b_g *= cell.weights_of_images(p_edges, i_edge, i_image, m_pixel, m // (Ho * Wo))
            if tl.load(p_edge + EDGE.MAX) >= 0:
                b_mean, b_scale, b_shift = cell.three(p_norms, tl.load(p_edge + EDGE.MAX_NORM), i_c, m_c, CQ)
                b_a, b_c0, b_c1 = cell.three(p_coefficients, tl.load(p_edge + EDGE.MAX_NORM), i_c, m_c, CQ)
                b_dmax += b_a[None, :] * (
                    b_g - b_c0[None, :] - cell.normalised(b_best, b_mean, b_scale, b_shift) * b_c1[None, :]
                )
            if tl.load(p_edge + EDGE.AVG) >= 0:
                b_mean, b_scale, b_shift = cell.three(p_norms, tl.load(p_edge + EDGE.AVG_NORM), i_c, m_c, CQ)
                b_a, b_c0, b_c1 = cell.three(p_coefficients, tl.load(p_edge + EDGE.AVG_NORM), i_c, m_c, CQ)
                b_davg += b_a[None, :] * (
                    b_g - b_c0[None, :] - cell.normalised(b_average, b_mean, b_scale, b_shift) * b_c1[None, :]
                )
            if tl.load(p_edge + EDGE.PLAIN) >= 0:
                weight = tl.load(p_ops + i_edge * columns + tl.load(p_edge + EDGE.PLAIN)).to(tl.float32)
                if WEIGHTED == 1:
                    weight *= tl.load(p_edges + i_edge).to(tl.float32)
                b_davg += weight * b_g
            if PLAIN_MAX and tl.load(p_table + o_plain_max + i_edge) >= 0:
                weight = tl.load(p_ops + i_edge * columns + tl.load(p_table + o_plain_max + i_edge)).to(tl.float32)
                if WEIGHTED == 1:
                    weight *= tl.load(p_edges + i_edge).to(tl.float32)
                b_dmax += weight * b_g
        o_out = i_pixel.to(tl.int64)[:, None] * CQ + i_c[None, :]
        m_block = m_pixel[:, None] & m_c[None, :]
        tl.store(p_dmax + o_out, b_dmax.to(kind), mask=m_block)
        tl.store(p_place + o_out, b_place.to(tl.float32).to(kind), mask=m_block)
        tl.store(p_davg + o_out, (b_davg / b_count[:, None]).to(kind), mask=m_block)


@cell.kernel
def state_gradient(
    p_inputs, p_saved, p_work, p_grad, p_grad_inputs, p_weights, p_channels, p_inverse, p_ops, p_edges, p_norms,
    p_coefficients, p_table,
    o_listed, o_states, o_edges, o_pools, o_units, H, W, Ho, Wo, pixels, per, parts, columns,
    C: tl.constexpr, CQ: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, NODES: tl.constexpr,
    CHOSEN: tl.constexpr, WEIGHTED: tl.constexpr, DENSE: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Compute a state's gradient: from the output, and from each edge that leaves the state.

    A node's gradient is stored in the channel order of the edges into it: first the channels of the candidates, then the
    bypassed ones. Tiles of channels as in `node`, here of the state's own channels.
    """
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    i_tile = tl.program_id(0) // parts % TILES
    p_row = p_table + o_states + tl.load(p_table + o_listed + tl.program_id(0) // parts // TILES) * STATE.SIZE
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
    source, i_node = tl.load(p_row + STATE.SOURCE), tl.load(p_row + STATE.NODE)
    p_x = cell.state_of(p_inputs, p_saved, source, tl.load(p_row + STATE.STATE))
    p_out = cell.state_of(p_grad_inputs, p_work, source, tl.load(p_row + STATE.GRAD))
    i_place = tl.where(i_node >= 0, i_place, i_channel)
    height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
    first, last = tl.load(p_row + STATE.LEAVING).to(tl.int32), tl.load(p_row + STATE.LEAVING_END).to(tl.int32)
    end = tl.minimum(part * per + per, pixels)
    for start in range(part * per, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, height, width)
        b_total = tl.full([BP, BC], 0.0, tl.float32)
        b_behind_relu = tl.full([BP, BC], 0.0, tl.float32)
        if i_node >= 0:
            b_total += cell.rows_of(p_grad + i_node * C, i_pixel, m_pixel, i_channel, m_channel, NODES * C)
        for i in range(first, last):
            i_edge = tl.load(p_table + i).to(tl.int32)
            p_edge = p_table + o_edges + i_edge * EDGE.SIZE
            stride = tl.load(p_edge + EDGE.STRIDE).to(tl.int32)
            p_g = p_work + tl.load(p_edge + EDGE.GRAD) * BLOCK
            i_c = cell.through_of(p_inverse, i_edge, i_tile, i_channel, m_channel, C, CHOSEN)
            m_c = i_c >= 0
            beta = 1.0
            b_factor = 1.0
            if WEIGHTED == 1:
                beta = tl.load(p_edges + i_edge).to(tl.float32)
            if WEIGHTED == 2:
                beta = cell.weights_of_images(p_edges, i_edge, i_image, m_pixel, pixels // (height * width))
                b_factor = beta
            if is_through:
                last_unit = tl.load(p_edge + EDGE.UNITS_END).to(tl.int32)
                for i_unit in range(tl.load(p_edge + EDGE.UNITS).to(tl.int32), last_unit):
                    p_unit = p_table + o_units + i_unit * UNIT.SIZE
                    kernel, dilation = tl.load(p_unit + UNIT.KERNEL), tl.load(p_unit + UNIT.DILATION).to(tl.int32)
                    p_taps = p_weights + tl.load(p_unit + UNIT.DEPTHWISE)
                    p_dz = p_work + tl.load(p_unit + UNIT.DZ) * BLOCK
                    if kernel == 3:
                        b_behind_relu += cell.depthwise_transposed(
                            p_dz, p_taps, i_c, m_c, i_image, i_row, i_column, m_pixel, Ho, Wo, stride, dilation, CQ, 3
                        )
                    if kernel == 5:
                        b_behind_relu += cell.depthwise_transposed(
                            p_dz, p_taps, i_c, m_c, i_image, i_row, i_column, m_pixel, Ho, Wo, stride, dilation, CQ, 5
                        )
                    if LARGEST > 5 and kernel == LARGEST:
                        b_behind_relu += cell.depthwise_transposed(
                            p_dz, p_taps, i_c, m_c, i_image, i_row, i_column, m_pixel, Ho, Wo, stride, 1, CQ, LARGEST
                        )
                    if DENSE:
                        taps, halves = tl.load(p_unit + UNIT.TAPS).to(tl.int32), tl.load(p_unit + UNIT.HALVES)
                        i_out = tl.arange(0, BC)
                        m_out = i_out < CQ
                        i_g = cell.channels_of(p_channels, i_edge, CQ, BC, CHOSEN)
                        i_norm = tl.load(p_unit + UNIT.NORM)
                        b_mean, b_scale, b_shift = cell.three(p_norms, i_norm, i_out, m_out, CQ)
                        b_a, b_c0, b_c1 = cell.three(p_coefficients, i_norm, i_out, m_out, CQ)
                        p_y = p_saved + tl.load(p_unit + UNIT.Y) * BLOCK
                        p_matrix = p_weights + tl.load(p_unit + UNIT.POINTWISE)
                        for t in range(taps):
                            rows, cols = cell.tap_offset(t, taps, halves)
                            i_met_row, i_met_column = i_row - rows, i_column - cols
                            m_met = (
                                m_pixel
                                & (((i_met_row | i_met_column) & (stride - 1)) == 0)
                                & (i_met_row >= 0)
                                & (i_met_column >= 0)
                            )
                            i_met_row, i_met_column = i_met_row >> (stride - 1), i_met_column >> (stride - 1)
                            m_met = m_met & (i_met_row < Ho) & (i_met_column < Wo)
                            i_met = (i_image * Ho + i_met_row) * Wo + i_met_column
                            b_dy = cell.gradient_tile(
                                p_g, p_y, i_met, m_met, C, i_g, i_out, m_out, b_factor,
                                b_mean, b_scale, b_shift, b_a, b_c0, b_c1, CQ,
                            )  # fmt: skip
                            b_matrix = cell.dense_matrix(
                                p_matrix, t, taps, halves, i_out[:, None], m_out[:, None], i_c[None, :], m_c[None, :], CQ
                            )
                            b_behind_relu = tl.dot(b_dy.to(b_matrix.dtype), b_matrix, b_behind_relu, input_precision="ieee")
                i_skip = tl.load(p_edge + EDGE.SKIP)
                if i_skip >= 0:
                    weight = beta * tl.load(p_ops + i_edge * columns + i_skip).to(tl.float32)
                    b_total += weight * cell.rows_of(p_g, i_pixel, m_pixel, i_channel, m_c, C)
                i_pool = tl.load(p_edge + EDGE.POOL)
                if i_pool >= 0:
                    p_pool = p_table + o_pools + i_pool * POOL.SIZE
                    p_dmax = p_work + tl.load(p_pool + POOL.DMAX) * BLOCK
                    p_max = p_work + tl.load(p_pool + POOL.PLACE) * BLOCK
                    p_davg = p_work + tl.load(p_pool + POOL.DAVG) * BLOCK
                    for i_window in range(9):
                        i_met_row, i_met_column = i_row + 1 - i_window // 3, i_column + 1 - i_window % 3
                        m_met = m_pixel & (((i_met_row | i_met_column) & (stride - 1)) == 0)
                        i_met_row, i_met_column = i_met_row >> (stride - 1), i_met_column >> (stride - 1)
                        b_dmax, _ = cell.tile_at(p_dmax, i_image, i_met_row, i_met_column, m_met, Ho, Wo, i_c, m_c, CQ)
                        b_place, _ = cell.tile_at(p_max, i_image, i_met_row, i_met_column, m_met, Ho, Wo, i_c, m_c, CQ)
                        b_davg, _ = cell.tile_at(p_davg, i_image, i_met_row, i_met_column, m_met, Ho, Wo, i_c, m_c, CQ)
                        b_total += b_davg + tl.where(b_place == i_window, b_dmax, 0.0)
            if C > CQ:
                m_by = m_channel & (i_c < 0)
                if stride == 1:
                    b_total += beta * cell.rows_of(p_g, i_pixel, m_pixel, i_channel, m_by, C)
                else:
                    i_met_row, i_met_column = i_row >> 1, i_column >> 1
                    _, b_place = cell.largest_of_four(
                        p_x, i_channel, m_by, i_image, i_met_row, i_met_column, m_pixel, height, width, C
                    )
                    b_g, _ = cell.tile_at(p_g, i_image, i_met_row, i_met_column, m_pixel, Ho, Wo, i_channel, m_by, C)
                    b_own = ((i_row & 1) * 2 + (i_column & 1))[:, None]
                    b_total += tl.where(b_place == b_own, beta * b_g, 0.0)
        if first < last:
            b_x = cell.rows_of(p_x, i_pixel, m_pixel, i_channel, m_channel, C)
            b_total += tl.where(b_x > 0, b_behind_relu, 0.0)
        o_out = i_pixel.to(tl.int64)[:, None] * C + i_place[None, :]
        tl.store(p_out + o_out, b_total.to(p_work.dtype.element_ty), mask=m_pixel[:, None] & m_channel[None, :])


def specimens(dtype: torch.dtype, widths: tuple[Width, ...] = WIDTHS) -> list[Specimen]:
    """Return each kernel as launched, at the widths of the usual networks."""
    kernels: dict[str, Any] = {"product": product, "bn_backward_inner": bn_backward_inner}
    kernels |= {"pool_gradient": pool_gradient, "state_gradient": state_gradient}
    return mixed_cell_specimens.specimens(kernels, dtype, widths)
