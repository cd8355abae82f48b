"""Forward kernels of mixed_cell: convolutions and pools with the sums of their BNs, scale and shift of BNs, node sums.

Notation as in mixed_cell_parts.py. A launch runs one stage for all its rows of the table (an edge's candidate, a node, ...):
program number = row * parts + part. A part is `per` consecutive pixels, which its program processes tile by tile. Sums over
pixels are computed within a part and merged over the parts in order: results are bitwise reproducible.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from fastdarts.kernels import mixed_cell_parts as cell
from fastdarts.kernels import mixed_cell_specimens
from fastdarts.kernels.compile import Specimen
from fastdarts.kernels.mixed_cell_parts import BLOCK, EDGE, NODE, NORM, POOL, TERM, UNIT
from fastdarts.kernels.mixed_cell_specimens import WIDTHS, Width


@cell.kernel
def separable(
    p_inputs, p_saved, p_weights, p_channels, p_scaled, p_statistics, p_table,
    o_listed, o_units, H, W, Ho, Wo, m, per, parts,
    C: tl.constexpr, CQ: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr, CHOSEN: tl.constexpr, BATCH: tl.constexpr,
    SECOND: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Compute y = pointwise(depthwise(relu(x))), or of relu(BN of the first half) if SECOND; also the sums of y's BN."""
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    i_unit = tl.load(p_table + o_listed + tl.program_id(0) // parts)
    p_row = p_table + o_units + i_unit * UNIT.SIZE
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    kernel, dilation = tl.load(p_row + UNIT.KERNEL).to(tl.int32), tl.load(p_row + UNIT.DILATION).to(tl.int32)
    p_taps = p_weights + tl.load(p_row + UNIT.DEPTHWISE)
    p_matrix = p_weights + tl.load(p_row + UNIT.POINTWISE)
    p_y = p_saved + tl.load(p_row + UNIT.Y) * BLOCK
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
    b_matrix = tl.load(p_matrix + i_c[None, :] * CQ + i_c[:, None], mask=m_c[None, :] & m_c[:, None], other=0.0)
    b_pivot = tl.full([BC], 0.0, tl.float32)
    b_total = tl.full([BC], 0.0, tl.float32)
    b_squares = tl.full([BC], 0.0, tl.float32)
    begin = part * per
    end = tl.minimum(begin + per, m)
    for start in range(begin, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        b_z = cell.depthwise_of(
            p_x, p_taps, kernel, i_channel, i_c, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, dilation,
            b_mean, b_scale, b_shift, ROW, SECOND, LARGEST,
        )  # fmt: skip
        b_y = tl.dot(b_z.to(b_matrix.dtype), b_matrix, input_precision="ieee").to(b_matrix.dtype)
        tl.store(p_y + i_pixel.to(tl.int64)[:, None] * CQ + i_c[None, :], b_y, mask=m_pixel[:, None] & m_c[None, :])
        if BATCH:
            b_pivot, b_total, b_squares = cell.deviations(
                b_y.to(tl.float32), m_pixel, b_pivot, b_total, b_squares, start == begin
            )
    if BATCH:
        i_slot = tl.load(p_row + UNIT.NORM) * parts + part
        cell.store_three(p_statistics, i_slot, i_c, m_c, b_pivot, b_total, b_squares, CQ)


@cell.kernel
def dense(
    p_inputs, p_saved, p_weights, p_channels, p_statistics, p_table,
    o_listed, o_units, H, W, Ho, Wo, m, per, parts,
    C: tl.constexpr, CQ: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr, CHOSEN: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    """Compute y = dense convolution of relu(x): 1x1, 3x3, or both halves of FactorizedReduce; also the sums of y's BN."""
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    i_unit = tl.load(p_table + o_listed + tl.program_id(0) // parts)
    p_row = p_table + o_units + i_unit * UNIT.SIZE
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    source = tl.load(p_row + UNIT.SOURCE)
    p_x = cell.state_of(p_inputs, p_saved, source, tl.load(p_row + UNIT.STATE))
    height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
    stride, taps = tl.load(p_row + UNIT.STRIDE).to(tl.int32), tl.load(p_row + UNIT.TAPS).to(tl.int32)
    halves = tl.load(p_row + UNIT.HALVES)
    i_channel = cell.channels_of(p_channels, tl.load(p_row + UNIT.EDGE), CQ, BC, CHOSEN)
    p_matrix = p_weights + tl.load(p_row + UNIT.POINTWISE)
    p_y = p_saved + tl.load(p_row + UNIT.Y) * BLOCK
    b_pivot = tl.full([BC], 0.0, tl.float32)
    b_total = tl.full([BC], 0.0, tl.float32)
    b_squares = tl.full([BC], 0.0, tl.float32)
    begin = part * per
    end = tl.minimum(begin + per, m)
    for start in range(begin, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        b_sums = tl.full([BP, BC], 0.0, tl.float32)
        for t in range(taps):
            rows, columns = cell.tap_offset(t, taps, halves)
            b_x, _ = cell.tile_at(
                p_x, i_image, i_row * stride + rows, i_column * stride + columns, m_pixel, height, width, i_channel, m_c, C
            )
            b_matrix = cell.dense_matrix(p_matrix, t, taps, halves, i_c[None, :], m_c[None, :], i_c[:, None], m_c[:, None], CQ)
            b_sums = tl.dot(cell.rectified(b_x).to(b_matrix.dtype), b_matrix, b_sums, input_precision="ieee")
        b_y = b_sums.to(p_saved.dtype.element_ty)
        tl.store(p_y + i_pixel.to(tl.int64)[:, None] * CQ + i_c[None, :], b_y, mask=m_pixel[:, None] & m_c[None, :])
        if BATCH:
            b_pivot, b_total, b_squares = cell.deviations(
                b_y.to(tl.float32), m_pixel, b_pivot, b_total, b_squares, start == begin
            )
    if BATCH:
        i_slot = tl.load(p_row + UNIT.NORM) * parts + part
        cell.store_three(p_statistics, i_slot, i_c, m_c, b_pivot, b_total, b_squares, CQ)


@cell.kernel
def pool_sums(
    p_inputs, p_saved, p_channels, p_statistics, p_table,
    o_listed, o_pools, H, W, Ho, Wo, m, per, parts,
    C: tl.constexpr, CQ: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr, CHOSEN: tl.constexpr,
):  # fmt: skip
    """Compute the sums of the BNs after a state's 3x3 maximum and mean."""
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    p_row = p_table + o_pools + tl.load(p_table + o_listed + tl.program_id(0) // parts) * POOL.SIZE
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    source = tl.load(p_row + POOL.SOURCE)
    p_x = cell.state_of(p_inputs, p_saved, source, tl.load(p_row + POOL.STATE))
    height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
    stride = tl.load(p_row + POOL.STRIDE).to(tl.int32)
    i_channel = cell.channels_of(p_channels, tl.load(p_row + POOL.EDGE), CQ, BC, CHOSEN)
    b_max_pivot = tl.full([BC], 0.0, tl.float32)
    b_max_total = tl.full([BC], 0.0, tl.float32)
    b_max_squares = tl.full([BC], 0.0, tl.float32)
    b_avg_pivot = tl.full([BC], 0.0, tl.float32)
    b_avg_total = tl.full([BC], 0.0, tl.float32)
    b_avg_squares = tl.full([BC], 0.0, tl.float32)
    begin = part * per
    end = tl.minimum(begin + per, m)
    for start in range(begin, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        b_best, _, b_mean, _ = cell.pools(p_x, i_channel, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, C)
        b_max_pivot, b_max_total, b_max_squares = cell.deviations(
            b_best, m_pixel, b_max_pivot, b_max_total, b_max_squares, start == begin
        )
        b_avg_pivot, b_avg_total, b_avg_squares = cell.deviations(
            b_mean, m_pixel, b_avg_pivot, b_avg_total, b_avg_squares, start == begin
        )
    i_slot = tl.load(p_row + POOL.MAX_SLOT)
    if i_slot >= 0:
        cell.store_three(p_statistics, i_slot * parts + part, i_c, m_c, b_max_pivot, b_max_total, b_max_squares, CQ)
    i_slot = tl.load(p_row + POOL.AVG_SLOT)
    if i_slot >= 0:
        cell.store_three(p_statistics, i_slot * parts + part, i_c, m_c, b_avg_pivot, b_avg_total, b_avg_squares, CQ)


@cell.kernel
def bn_scale_shift(
    p_statistics, p_mean, p_var, p_affine, p_result, p_norms, p_scaled, p_table,
    o_listed, o_norms, m, per, parts, eps,
    NORMS: tl.constexpr, CQ: tl.constexpr, BC: tl.constexpr, BATCH: tl.constexpr, AFFINE: tl.constexpr,
):  # fmt: skip
    """Compute mean and variance of a BN (merged over the parts, or the running ones), and scale and shift of its xhat.

    If AFFINE, also scale and shift of its output.
    """
    p_row = p_table + o_norms + tl.load(p_table + o_listed + tl.program_id(0)) * NORM.SIZE
    i_norm = tl.load(p_row + NORM.NORM)
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    if BATCH:
        p_first = p_statistics + tl.load(p_row + NORM.SLOT) * parts * 3 * CQ
        b_mean = tl.full([BC], 0.0, tl.float64)
        b_var = tl.full([BC], 0.0, tl.float64)
        for part in range(0, parts, 16):
            i_part = part + tl.arange(0, 16)
            b_count = tl.maximum(tl.minimum(m - i_part * per, per), 0).to(tl.float64)
            p_part = p_first + (i_part * 3 * CQ)[:, None] + i_c[None, :]
            m_block = (i_part < parts)[:, None] & m_c[None, :]
            b_pivot = tl.load(p_part, mask=m_block, other=0.0).to(tl.float64)
            b_mean += tl.sum(b_pivot * b_count[:, None] + tl.load(p_part + CQ, mask=m_block, other=0.0).to(tl.float64), axis=0)
        b_mean = b_mean / m.to(tl.float64)
        for part in range(0, parts, 16):
            i_part = part + tl.arange(0, 16)
            b_count = tl.maximum(tl.minimum(m - i_part * per, per), 0).to(tl.float64)
            p_part = p_first + (i_part * 3 * CQ)[:, None] + i_c[None, :]
            m_block = (i_part < parts)[:, None] & m_c[None, :]
            b_pivot = tl.load(p_part, mask=m_block, other=0.0).to(tl.float64)
            b_total = tl.load(p_part + CQ, mask=m_block, other=0.0).to(tl.float64)
            b_squares = tl.load(p_part + 2 * CQ, mask=m_block, other=0.0).to(tl.float64)
            # sum (y - mean)^2 from the sums of y - pivot
            b_gap = tl.where(m_block, b_pivot - b_mean[None, :], 0.0)
            b_var += tl.sum(b_squares + 2 * b_gap * b_total + b_gap * b_gap * b_count[:, None], axis=0)
        b_var = tl.maximum(b_var / m.to(tl.float64), 0.0)
    else:
        b_mean = tl.load(p_mean + i_norm * CQ + i_c, mask=m_c, other=0.0).to(tl.float64)
        b_var = tl.load(p_var + i_norm * CQ + i_c, mask=m_c, other=0.0).to(tl.float64)
    tl.store(p_result + i_norm * CQ + i_c, b_mean, mask=m_c)
    tl.store(p_result + (NORMS + i_norm) * CQ + i_c, b_var, mask=m_c)
    b_head = b_mean.to(tl.float32)
    b_scale = 1.0 / tl.sqrt(b_var + eps)
    b_shift = (b_head.to(tl.float64) - b_mean) * b_scale
    cell.store_three(p_norms, i_norm, i_c, m_c, b_head, b_scale.to(tl.float32), b_shift.to(tl.float32), CQ)
    if AFFINE:
        b_gamma, b_beta = cell.affine_of(p_affine, i_norm, i_c, m_c, NORMS, CQ)
        b_scale, b_shift = b_gamma * b_scale, b_gamma * b_shift + b_beta
        cell.store_three(p_scaled, i_norm, i_c, m_c, b_head, b_scale.to(tl.float32), b_shift.to(tl.float32), CQ)


@triton.jit
def channel_inverse(p_channels, p_inverse, C: tl.constexpr, CQ: tl.constexpr, BALL: tl.constexpr):
    """Invert an edge's channels: the position of each channel among those of the candidates, -1 for bypassed ones."""
    i_edge = tl.program_id(0)
    i_channel = tl.arange(0, BALL)
    b_place = tl.full([BALL], -1, tl.int32)
    for p in range(CQ):
        b_place = tl.where(i_channel == tl.load(p_channels + i_edge * CQ + p), p, b_place)
    tl.store(p_inverse + i_edge * C + i_channel, b_place, mask=i_channel < C)


@cell.kernel
def node(
    p_inputs, p_saved, p_out, p_ops, p_edges, p_scaled, p_inverse, p_table,
    o_listed, o_nodes, o_edges, o_terms, H, W, Ho, Wo, m, per, parts, columns, o_plain_max,
    C: tl.constexpr, CQ: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, NODES: tl.constexpr,
    CHOSEN: tl.constexpr, WEIGHTED: tl.constexpr, PLAIN_MAX: tl.constexpr,
):  # fmt: skip
    """Compute s_j = sum over its edges of beta * (sum of a * BN, pools, skip), or beta * the state for bypassed channels.

    A program handles one tile of channels: without CHOSEN one group, of which the first passes through the candidates. Stores
    in the order of the channel shuffle, to the output and, if edges read it, to the node's state.
    """
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    i_tile = tl.program_id(0) // parts % TILES
    p_node = p_table + o_nodes + tl.load(p_table + o_listed + tl.program_id(0) // parts // TILES) * NODE.SIZE
    i_lane = tl.arange(0, BC)
    if CHOSEN:
        i_channel = i_tile * BC + i_lane
        m_channel = i_channel < C
        i_place = i_channel
        is_through = i_tile >= 0
    else:
        i_channel = i_tile * CQ + i_lane
        m_channel = i_lane < CQ
        i_place = i_lane * (C // CQ) + i_tile
        is_through = i_tile == 0
    i_node, o_state = tl.load(p_node + NODE.NODE), tl.load(p_node + NODE.STATE)
    first, last = tl.load(p_node + NODE.EDGES).to(tl.int32), tl.load(p_node + NODE.EDGES_END).to(tl.int32)
    end = tl.minimum(part * per + per, m)
    for start in range(part * per, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        b_sums = tl.full([BP, BC], 0.0, tl.float32)
        for i_edge in range(first, last):
            p_edge = p_table + o_edges + i_edge * EDGE.SIZE
            source, stride = tl.load(p_edge + EDGE.SOURCE), tl.load(p_edge + EDGE.STRIDE).to(tl.int32)
            p_x = cell.state_of(p_inputs, p_saved, source, tl.load(p_edge + EDGE.STATE))
            height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
            i_c = cell.through_of(p_inverse, i_edge, i_tile, i_channel, m_channel, C, CHOSEN)
            m_through = i_c >= 0
            beta = 1.0
            if WEIGHTED == 1:
                beta = tl.load(p_edges + i_edge).to(tl.float32)
            if WEIGHTED == 2:
                beta = cell.weights_of_images(p_edges, i_edge, i_image, m_pixel, m // (Ho * Wo))
            p_mix = p_ops + i_edge * columns
            if is_through:
                last_term = tl.load(p_edge + EDGE.TERMS_END).to(tl.int32)
                for i_term in range(tl.load(p_edge + EDGE.TERMS).to(tl.int32), last_term):
                    p_term = p_table + o_terms + i_term * TERM.SIZE
                    p_y = p_saved + tl.load(p_term + TERM.Y) * BLOCK
                    b_mean, b_scale, b_shift = cell.three(p_scaled, tl.load(p_term + TERM.NORM), i_c, m_through, CQ)
                    b_y = cell.rows_of(p_y, i_pixel, m_pixel, i_c, m_through, CQ)
                    weight = beta * tl.load(p_mix + tl.load(p_term + TERM.COLUMN)).to(tl.float32)
                    b_sums += weight * cell.normalised(b_y, b_mean, b_scale, b_shift)
                i_max, i_avg = tl.load(p_edge + EDGE.MAX), tl.load(p_edge + EDGE.AVG)
                i_plain, i_skip = tl.load(p_edge + EDGE.PLAIN), tl.load(p_edge + EDGE.SKIP)
                is_pooled = (i_max >= 0) | (i_avg >= 0) | (i_plain >= 0)
                if PLAIN_MAX:
                    i_plain_max = tl.load(p_table + o_plain_max + i_edge)
                    is_pooled = is_pooled | (i_plain_max >= 0)
                if is_pooled:
                    b_best, _, b_average, _ = cell.pools(
                        p_x, i_channel, m_through, i_image, i_row, i_column, m_pixel, height, width, stride, C
                    )
                    if i_max >= 0:
                        b_mean, b_scale, b_shift = cell.three(p_scaled, tl.load(p_edge + EDGE.MAX_NORM), i_c, m_through, CQ)
                        b_sums += (
                            beta * tl.load(p_mix + i_max).to(tl.float32) * cell.normalised(b_best, b_mean, b_scale, b_shift)
                        )
                    if i_avg >= 0:
                        b_mean, b_scale, b_shift = cell.three(p_scaled, tl.load(p_edge + EDGE.AVG_NORM), i_c, m_through, CQ)
                        b_sums += (
                            beta * tl.load(p_mix + i_avg).to(tl.float32) * cell.normalised(b_average, b_mean, b_scale, b_shift)
                        )
                    if i_plain >= 0:
                        b_sums += beta * tl.load(p_mix + i_plain).to(tl.float32) * b_average
                    if PLAIN_MAX and i_plain_max >= 0:
                        b_sums += beta * tl.load(p_mix + i_plain_max).to(tl.float32) * b_best
                if i_skip >= 0:
                    b_x = cell.rows_of(p_x, i_pixel, m_pixel, i_channel, m_through, C)
                    b_sums += beta * tl.load(p_mix + i_skip).to(tl.float32) * b_x
            if C > CQ:
                m_by = m_channel & (i_c < 0)
                if stride == 1:
                    b_sums += beta * cell.rows_of(p_x, i_pixel, m_pixel, i_channel, m_by, C)
                else:
                    b_best, _ = cell.largest_of_four(p_x, i_channel, m_by, i_image, i_row, i_column, m_pixel, height, width, C)
                    b_sums += beta * b_best
        b_state = b_sums.to(p_out.dtype.element_ty)
        m_block = m_pixel[:, None] & m_channel[None, :]
        o_out = i_pixel.to(tl.int64)[:, None] * (NODES * C) + (i_node * C + i_place)[None, :]
        tl.store(p_out + o_out, b_state, mask=m_block)
        if o_state >= 0:
            tl.store(p_saved + o_state * BLOCK + i_pixel.to(tl.int64)[:, None] * C + i_place[None, :], b_state, mask=m_block)


def specimens(dtype: torch.dtype, widths: tuple[Width, ...] = WIDTHS) -> list[Specimen]:
    """Return each kernel as launched, at the widths of the usual networks."""
    kernels: dict[str, Any] = {"separable": separable, "dense": dense, "pool_sums": pool_sums}
    kernels |= {"bn_scale_shift": bn_scale_shift, "channel_inverse": channel_inverse, "node": node}
    return mixed_cell_specimens.specimens(kernels, dtype, widths)
