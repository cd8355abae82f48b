"""The forward kernels of mixed_cell: convolutions with the sums of their BNs, pools' sums, BN's factors, the nodes' sums.

Letters and prefixes as in mixed_cell_parts.py. A launch does one stage for all its rows of the table (an edge's candidate,
a node, ...): program number = row * parts + part, and a part is `per` pixels one after the other, which a program takes
tile by tile. Whatever is summed over pixels is summed within a part and merged over the parts in order: the same bits in
each run.
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
def separable(
    p_x0,
    p_x1,
    p_x2,
    p_x3,
    p_saved,
    p_weights,
    p_channels,
    p_norms,
    p_statistics,
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
    C: tl.constexpr,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    TILE: tl.constexpr,
    CHOSEN: tl.constexpr,
    BATCH: tl.constexpr,
    SECOND: tl.constexpr,
):
    """y = pointwise(depthwise(relu(x))), or of relu(xhat of the first half) where SECOND; the sums of y's BN."""
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    i_unit = tl.load(p_table + listed + tl.program_id(0) // parts)
    p_row = p_table + units + i_unit * cell.UNIT
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    kernel, dilation = tl.load(p_row + cell.UNIT_KERNEL).to(tl.int32), tl.load(p_row + cell.UNIT_DILATION).to(tl.int32)
    p_taps = p_weights + tl.load(p_row + cell.UNIT_DEPTHWISE)
    p_matrix = p_weights + tl.load(p_row + cell.UNIT_POINTWISE)
    p_y = p_saved + tl.load(p_row + cell.UNIT_Y) * cell.BLOCK
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
    matrix = tl.load(p_matrix + i_c[None, :] * CQ + i_c[:, None], mask=m_c[None, :] & m_c[:, None], other=0.0)
    pivot = tl.full([BC], 0.0, tl.float32)
    total = tl.full([BC], 0.0, tl.float32)
    squares = tl.full([BC], 0.0, tl.float32)
    begin = part * per
    end = tl.minimum(begin + per, m)
    for start in range(begin, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        if kernel == 3:
            z = cell.depthwise(
                p_x, p_taps, i_channel, i_c, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, dilation,
                mean, scale, shift, ROW, 3, SECOND,
            )  # fmt: skip
        else:
            z = cell.depthwise(
                p_x, p_taps, i_channel, i_c, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, dilation,
                mean, scale, shift, ROW, 5, SECOND,
            )  # fmt: skip
        y = tl.dot(z.to(matrix.dtype), matrix, input_precision="ieee").to(matrix.dtype)
        tl.store(p_y + i_pixel.to(tl.int64)[:, None] * CQ + i_c[None, :], y, mask=m_pixel[:, None] & m_c[None, :])
        if BATCH:
            pivot, total, squares = cell.deviations(y.to(tl.float32), m_pixel, pivot, total, squares, start == begin)
    if BATCH:
        i_slot = tl.load(p_row + cell.UNIT_NORM) * parts + part
        cell.store_three(p_statistics, i_slot, i_c, m_c, pivot, total, squares, CQ)


@triton.jit(do_not_specialize=cell.INTEGERS)
def dense(
    p_x0,
    p_x1,
    p_x2,
    p_x3,
    p_saved,
    p_weights,
    p_channels,
    p_statistics,
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
    C: tl.constexpr,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    TILE: tl.constexpr,
    CHOSEN: tl.constexpr,
    BATCH: tl.constexpr,
):
    """y = convolution of all channels of relu(x): 1x1, 3x3, or the two halves of FactorizedReduce; the sums of y's BN."""
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    i_unit = tl.load(p_table + listed + tl.program_id(0) // parts)
    p_row = p_table + units + i_unit * cell.UNIT
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    source = tl.load(p_row + cell.UNIT_SOURCE)
    p_x = cell.state_of(p_x0, p_x1, p_x2, p_x3, p_saved, source, tl.load(p_row + cell.UNIT_STATE))
    height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
    stride, taps = tl.load(p_row + cell.UNIT_STRIDE).to(tl.int32), tl.load(p_row + cell.UNIT_TAPS).to(tl.int32)
    halves = tl.load(p_row + cell.UNIT_HALVES)
    i_channel = cell.channels_of(p_channels, tl.load(p_row + cell.UNIT_EDGE), CQ, BC, CHOSEN)
    p_matrix = p_weights + tl.load(p_row + cell.UNIT_POINTWISE)
    p_y = p_saved + tl.load(p_row + cell.UNIT_Y) * cell.BLOCK
    pivot = tl.full([BC], 0.0, tl.float32)
    total = tl.full([BC], 0.0, tl.float32)
    squares = tl.full([BC], 0.0, tl.float32)
    begin = part * per
    end = tl.minimum(begin + per, m)
    for start in range(begin, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        sums = tl.full([BP, BC], 0.0, tl.float32)
        for t in range(taps):
            rows, columns = cell.tap_offset(t, taps, halves)
            x, _ = cell.tile_at(
                p_x, i_image, i_row * stride + rows, i_column * stride + columns, m_pixel, height, width, i_channel, m_c, C
            )
            matrix = cell.dense_matrix(p_matrix, t, taps, halves, i_c[None, :], m_c[None, :], i_c[:, None], m_c[:, None], CQ)
            sums = tl.dot(cell.rectified(x).to(matrix.dtype), matrix, sums, input_precision="ieee")
        y = sums.to(p_saved.dtype.element_ty)
        tl.store(p_y + i_pixel.to(tl.int64)[:, None] * CQ + i_c[None, :], y, mask=m_pixel[:, None] & m_c[None, :])
        if BATCH:
            pivot, total, squares = cell.deviations(y.to(tl.float32), m_pixel, pivot, total, squares, start == begin)
    if BATCH:
        i_slot = tl.load(p_row + cell.UNIT_NORM) * parts + part
        cell.store_three(p_statistics, i_slot, i_c, m_c, pivot, total, squares, CQ)


@triton.jit(do_not_specialize=cell.INTEGERS)
def pool_sums(
    p_x0,
    p_x1,
    p_x2,
    p_x3,
    p_saved,
    p_channels,
    p_statistics,
    p_table,
    listed,
    pools_at,
    H,
    W,
    Ho,
    Wo,
    m,
    per,
    parts,
    C: tl.constexpr,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    TILE: tl.constexpr,
    CHOSEN: tl.constexpr,
):
    """The sums of the BNs behind a state's 3x3 maximum and mean."""
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    p_row = p_table + pools_at + tl.load(p_table + listed + tl.program_id(0) // parts) * cell.POOL
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    source = tl.load(p_row + cell.POOL_SOURCE)
    p_x = cell.state_of(p_x0, p_x1, p_x2, p_x3, p_saved, source, tl.load(p_row + cell.POOL_STATE))
    height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
    stride = tl.load(p_row + cell.POOL_STRIDE).to(tl.int32)
    i_channel = cell.channels_of(p_channels, tl.load(p_row + cell.POOL_EDGE), CQ, BC, CHOSEN)
    max_pivot = tl.full([BC], 0.0, tl.float32)
    max_total = tl.full([BC], 0.0, tl.float32)
    max_squares = tl.full([BC], 0.0, tl.float32)
    avg_pivot = tl.full([BC], 0.0, tl.float32)
    avg_total = tl.full([BC], 0.0, tl.float32)
    avg_squares = tl.full([BC], 0.0, tl.float32)
    begin = part * per
    end = tl.minimum(begin + per, m)
    for start in range(begin, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        best, _, mean, _ = cell.pools(p_x, i_channel, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, C)
        max_pivot, max_total, max_squares = cell.deviations(best, m_pixel, max_pivot, max_total, max_squares, start == begin)
        avg_pivot, avg_total, avg_squares = cell.deviations(mean, m_pixel, avg_pivot, avg_total, avg_squares, start == begin)
    i_slot = tl.load(p_row + cell.POOL_MAX_SLOT)
    if i_slot >= 0:
        cell.store_three(p_statistics, i_slot * parts + part, i_c, m_c, max_pivot, max_total, max_squares, CQ)
    i_slot = tl.load(p_row + cell.POOL_AVG_SLOT)
    if i_slot >= 0:
        cell.store_three(p_statistics, i_slot * parts + part, i_c, m_c, avg_pivot, avg_total, avg_squares, CQ)


@triton.jit(do_not_specialize=cell.INTEGERS)
def factors(
    p_statistics,
    p_mean,
    p_var,
    p_result,
    p_norms,
    p_table,
    listed,
    norms_at,
    m,
    per,
    parts,
    eps,
    NORMS: tl.constexpr,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    BATCH: tl.constexpr,
):
    """Mean and variance of a BN, merged over the parts or the running ones, and the factors of its xhat."""
    p_row = p_table + norms_at + tl.load(p_table + listed + tl.program_id(0)) * cell.NORM
    i_norm = tl.load(p_row + cell.NORM_NORM)
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    if BATCH:
        p_first = p_statistics + tl.load(p_row + cell.NORM_SLOT) * parts * 3 * CQ
        mean = tl.full([BC], 0.0, tl.float64)
        var = tl.full([BC], 0.0, tl.float64)
        for part in range(0, parts, 16):
            i_part = part + tl.arange(0, 16)
            count = tl.maximum(tl.minimum(m - i_part * per, per), 0).to(tl.float64)
            p_part = p_first + (i_part * 3 * CQ)[:, None] + i_c[None, :]
            mask = (i_part < parts)[:, None] & m_c[None, :]
            pivot = tl.load(p_part, mask=mask, other=0.0).to(tl.float64)
            mean += tl.sum(pivot * count[:, None] + tl.load(p_part + CQ, mask=mask, other=0.0).to(tl.float64), axis=0)
        mean = mean / m.to(tl.float64)
        for part in range(0, parts, 16):
            i_part = part + tl.arange(0, 16)
            count = tl.maximum(tl.minimum(m - i_part * per, per), 0).to(tl.float64)
            p_part = p_first + (i_part * 3 * CQ)[:, None] + i_c[None, :]
            mask = (i_part < parts)[:, None] & m_c[None, :]
            pivot = tl.load(p_part, mask=mask, other=0.0).to(tl.float64)
            total = tl.load(p_part + CQ, mask=mask, other=0.0).to(tl.float64)
            squares = tl.load(p_part + 2 * CQ, mask=mask, other=0.0).to(tl.float64)
            # sum (y - mean)^2 from the sums of y - pivot
            gap = tl.where(mask, pivot - mean[None, :], 0.0)
            var += tl.sum(squares + 2 * gap * total + gap * gap * count[:, None], axis=0)
        var = tl.maximum(var / m.to(tl.float64), 0.0)
    else:
        mean = tl.load(p_mean + i_norm * CQ + i_c, mask=m_c, other=0.0).to(tl.float64)
        var = tl.load(p_var + i_norm * CQ + i_c, mask=m_c, other=0.0).to(tl.float64)
    tl.store(p_result + i_norm * CQ + i_c, mean, mask=m_c)
    tl.store(p_result + (NORMS + i_norm) * CQ + i_c, var, mask=m_c)
    head = mean.to(tl.float32)
    scale = 1.0 / tl.sqrt(var + eps)
    shift = (head.to(tl.float64) - mean) * scale
    cell.store_three(p_norms, i_norm, i_c, m_c, head, scale.to(tl.float32), shift.to(tl.float32), CQ)


@triton.jit
def places(p_channels, p_places, C: tl.constexpr, CQ: tl.constexpr, BALL: tl.constexpr):
    """The inverse of an edge's channels: at which place each channel passes through the candidates, or -1."""
    i_edge = tl.program_id(0)
    i_channel = tl.arange(0, BALL)
    place = tl.full([BALL], -1, tl.int32)
    for p in range(CQ):
        place = tl.where(i_channel == tl.load(p_channels + i_edge * CQ + p), p, place)
    tl.store(p_places + i_edge * C + i_channel, place, mask=i_channel < C)


@triton.jit(do_not_specialize=cell.INTEGERS)
def node(
    p_x0,
    p_x1,
    p_x2,
    p_x3,
    p_saved,
    p_out,
    p_ops,
    p_edges,
    p_norms,
    p_places,
    p_table,
    listed,
    nodes_at,
    edges_at,
    terms,
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
    TILES: tl.constexpr,
    NODES: tl.constexpr,
    CHOSEN: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """s_j = sum over its edges of beta * (sum of a * xhat, pools, skip), beta * the state where channels pass by.

    A program has one tile of channels: without CHOSEN those of one group, of which the first passes through. Written where
    the channel shuffle puts them, to the output and, if edges read it, to the node's state.
    """
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    i_tile = tl.program_id(0) // parts % TILES
    p_node = p_table + nodes_at + tl.load(p_table + listed + tl.program_id(0) // parts // TILES) * cell.NODE
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
    i_node, o_state = tl.load(p_node + cell.NODE_NODE), tl.load(p_node + cell.NODE_STATE)
    first, last = tl.load(p_node + cell.NODE_EDGES).to(tl.int32), tl.load(p_node + cell.NODE_EDGES_END).to(tl.int32)
    end = tl.minimum(part * per + per, m)
    for start in range(part * per, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        sums = tl.full([BP, BC], 0.0, tl.float32)
        for i_edge in range(first, last):
            p_edge = p_table + edges_at + i_edge * cell.EDGE
            source, stride = tl.load(p_edge + cell.EDGE_SOURCE), tl.load(p_edge + cell.EDGE_STRIDE).to(tl.int32)
            p_x = cell.state_of(p_x0, p_x1, p_x2, p_x3, p_saved, source, tl.load(p_edge + cell.EDGE_STATE))
            height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
            i_c = cell.through_of(p_places, i_edge, i_tile, i_channel, m_channel, C, CHOSEN)
            m_through = i_c >= 0
            beta = 1.0
            if WEIGHTED:
                beta = tl.load(p_edges + i_edge).to(tl.float32)
            p_mix = p_ops + i_edge * columns
            if is_through:
                last_term = tl.load(p_edge + cell.EDGE_TERMS_END).to(tl.int32)
                for i_term in range(tl.load(p_edge + cell.EDGE_TERMS).to(tl.int32), last_term):
                    p_term = p_table + terms + i_term * cell.TERM
                    p_y = p_saved + tl.load(p_term + cell.TERM_Y) * cell.BLOCK
                    mean, scale, shift = cell.three(p_norms, tl.load(p_term + cell.TERM_NORM), i_c, m_through, CQ)
                    y = cell.rows_of(p_y, i_pixel, m_pixel, i_c, m_through, CQ)
                    weight = beta * tl.load(p_mix + tl.load(p_term + cell.TERM_COLUMN)).to(tl.float32)
                    sums += weight * cell.normalised(y, mean, scale, shift)
                i_max, i_avg = tl.load(p_edge + cell.EDGE_MAX), tl.load(p_edge + cell.EDGE_AVG)
                i_plain, i_skip = tl.load(p_edge + cell.EDGE_PLAIN), tl.load(p_edge + cell.EDGE_SKIP)
                if (i_max >= 0) | (i_avg >= 0) | (i_plain >= 0):
                    best, _, average, _ = cell.pools(
                        p_x, i_channel, m_through, i_image, i_row, i_column, m_pixel, height, width, stride, C
                    )
                    if i_max >= 0:
                        mean, scale, shift = cell.three(p_norms, tl.load(p_edge + cell.EDGE_MAX_NORM), i_c, m_through, CQ)
                        sums += beta * tl.load(p_mix + i_max).to(tl.float32) * cell.normalised(best, mean, scale, shift)
                    if i_avg >= 0:
                        mean, scale, shift = cell.three(p_norms, tl.load(p_edge + cell.EDGE_AVG_NORM), i_c, m_through, CQ)
                        sums += beta * tl.load(p_mix + i_avg).to(tl.float32) * cell.normalised(average, mean, scale, shift)
                    if i_plain >= 0:
                        sums += beta * tl.load(p_mix + i_plain).to(tl.float32) * average
                if i_skip >= 0:
                    x = cell.rows_of(p_x, i_pixel, m_pixel, i_channel, m_through, C)
                    sums += beta * tl.load(p_mix + i_skip).to(tl.float32) * x
            if C > CQ:
                m_by = m_channel & (i_c < 0)
                if stride == 1:
                    sums += beta * cell.rows_of(p_x, i_pixel, m_pixel, i_channel, m_by, C)
                else:
                    best, _ = cell.largest_of_four(p_x, i_channel, m_by, i_image, i_row, i_column, m_pixel, height, width, C)
                    sums += beta * best
        state = sums.to(p_out.dtype.element_ty)
        mask = m_pixel[:, None] & m_channel[None, :]
        o_out = i_pixel.to(tl.int64)[:, None] * (NODES * C) + (i_node * C + i_place)[None, :]
        tl.store(p_out + o_out, state, mask=mask)
        if o_state >= 0:
            tl.store(p_saved + o_state * cell.BLOCK + i_pixel.to(tl.int64)[:, None] * C + i_place[None, :], state, mask=mask)


def specimens(dtype: torch.dtype, widths: tuple[Width, ...] = WIDTHS) -> list[Specimen]:
    """Each kernel as a launch has it, at the widths of the usual networks."""
    kernels: dict[str, Any] = {"separable": separable, "dense": dense, "pool_sums": pool_sums}
    kernels |= {"factors": factors, "places": places, "node": node}
    return mixed_cell_specimens.specimens(kernels, dtype, widths)
