"""The kernels of mixed_cell that take the sums behind BN's backward, and make of them the gradients of ops and edges.

Letters and prefixes as in mixed_cell_parts.py, launches as in mixed_cell_forward.py. With g = dL/ds of a node and m pixels,
dL/dy = beta a r (g - S0 / m - xhat S1 / m) for S0 = sum g and S1 = sum g xhat, and dL/da = beta * sum over channels of S1.
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
def sums(
    p_x0,
    p_x1,
    p_x2,
    p_x3,
    p_saved,
    p_work,
    p_channels,
    p_places,
    p_norms,
    p_sums,
    p_table,
    listed,
    edges_at,
    sums_at,
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
    """Sums over a part, by channel, of a node's gradient g, and of g times one term of an edge into the node.

    The term is a candidate's xhat, the mean that has no BN, the state itself, or what passes by (a sum over channels too).
    """
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    i_sum = tl.load(p_table + listed + tl.program_id(0) // parts)
    p_row = p_table + sums_at + i_sum * cell.SUM
    kind, i_edge = tl.load(p_row + cell.SUM_KIND), tl.load(p_row + cell.SUM_EDGE).to(tl.int32)
    p_edge = p_table + edges_at + i_edge * cell.EDGE
    source, stride = tl.load(p_edge + cell.EDGE_SOURCE), tl.load(p_edge + cell.EDGE_STRIDE).to(tl.int32)
    p_x = cell.state_of(p_x0, p_x1, p_x2, p_x3, p_saved, source, tl.load(p_edge + cell.EDGE_STATE))
    height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
    p_g = p_work + tl.load(p_edge + cell.EDGE_GRAD) * cell.BLOCK
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    i_channel = cell.channels_of(p_channels, i_edge, CQ, BC, CHOSEN)
    mean = tl.full([BC], 0.0, tl.float32)
    scale = tl.full([BC], 1.0, tl.float32)
    shift = tl.full([BC], 0.0, tl.float32)
    if tl.load(p_row + cell.SUM_NORM) >= 0:
        mean, scale, shift = cell.three(p_norms, tl.load(p_row + cell.SUM_NORM), i_c, m_c, CQ)
    zeroth = tl.full([BP, BC], 0.0, tl.float32)
    first = tl.full([BP, BC], 0.0, tl.float32)
    begin = part * per
    end = tl.minimum(begin + per, m)
    p_y = p_saved + tl.load(p_row + cell.SUM_Y) * cell.BLOCK
    for start in range(begin, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        if kind == cell.KIND_BYPASS:
            for i_first in range(0, C, BC):
                i_all = i_first + i_c
                m_all = i_all < C
                m_by = m_all & (cell.through_of(p_places, i_edge, i_all // CQ, i_all, m_all, C, CHOSEN) < 0)
                g = cell.rows_of(p_g, i_pixel, m_pixel, i_all, m_by, C)
                if stride == 1:
                    first += g * cell.rows_of(p_x, i_pixel, m_pixel, i_all, m_by, C)
                else:
                    best, _ = cell.largest_of_four(p_x, i_all, m_by, i_image, i_row, i_column, m_pixel, height, width, C)
                    first += g * best
        else:
            g = cell.rows_of(p_g, i_pixel, m_pixel, i_channel, m_c, C)
            zeroth += g
            if kind == cell.KIND_Y:
                first += g * cell.normalised(cell.rows_of(p_y, i_pixel, m_pixel, i_c, m_c, CQ), mean, scale, shift)
            elif kind == cell.KIND_SKIP:
                first += g * cell.rows_of(p_x, i_pixel, m_pixel, i_channel, m_c, C)
            else:
                best, _, average, _ = cell.pools(
                    p_x, i_channel, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, C
                )
                first += g * cell.normalised(tl.where(kind == cell.KIND_MAX, best, average), mean, scale, shift)
    of_channel = tl.sum(first, axis=0)
    if kind == cell.KIND_BYPASS:
        of_channel = tl.where(i_c == 0, tl.sum(of_channel, axis=0), 0.0)
    p_part = p_sums + (i_sum * parts + part) * 2 * CQ + i_c
    tl.store(p_part, tl.sum(zeroth, axis=0), mask=m_c)
    tl.store(p_part + CQ, of_channel, mask=m_c)


@triton.jit(do_not_specialize=cell.INTEGERS)
def mix(
    p_ops,
    p_edges,
    p_norms,
    p_sums,
    p_coefficients,
    p_grad_ops,
    p_grad_edges,
    p_table,
    listed,
    edges_at,
    sums_at,
    m,
    sum_parts,
    columns,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    COLUMNS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BATCH: tl.constexpr,
    SUMMED: tl.constexpr,
    NEED_OPS: tl.constexpr,
):
    """An edge's share of the gradients of ops and edges; for each of its BNs a, c0, c1 of dL/dy = a (g - c0 - c1 xhat)."""
    i_edge = tl.load(p_table + listed + tl.program_id(0))
    p_edge = p_table + edges_at + i_edge * cell.EDGE
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    i_column = tl.arange(0, COLUMNS)
    beta = 1.0
    if WEIGHTED:
        beta = tl.load(p_edges + i_edge).to(tl.float32)
    of_ops = tl.full([COLUMNS], 0.0, tl.float64)
    of_edge = tl.full([1], 0.0, tl.float64)
    zeroth = tl.full([BC], 0.0, tl.float64)
    first = tl.full([BC], 0.0, tl.float64)
    for i_sum in range(tl.load(p_edge + cell.EDGE_SUMS).to(tl.int32), tl.load(p_edge + cell.EDGE_SUMS_END).to(tl.int32)):
        p_row = p_table + sums_at + i_sum * cell.SUM
        column, i_norm = tl.load(p_row + cell.SUM_COLUMN), tl.load(p_row + cell.SUM_NORM)
        if SUMMED:
            zeroth, first = cell.merged(p_sums, i_sum * sum_parts, sum_parts, i_c, m_c, CQ)
        total = tl.sum(first, axis=0)
        weight = tl.load(p_ops + i_edge * columns + column, mask=column >= 0, other=1.0).to(tl.float32)
        of_ops += tl.where(i_column == column, total * beta, 0.0)
        of_edge += total * weight
        if i_norm >= 0:
            _, scale, _ = cell.three(p_norms, i_norm, i_c, m_c, CQ)
            c0, c1 = scale * 0.0, scale * 0.0
            if BATCH:
                c0, c1 = (zeroth / m.to(tl.float64)).to(tl.float32), (first / m.to(tl.float64)).to(tl.float32)
            cell.store_three(p_coefficients, i_norm, i_c, m_c, beta * weight * scale, c0, c1, CQ)
    if NEED_OPS:
        kind = p_grad_ops.dtype.element_ty
        tl.store(p_grad_ops + i_edge * columns + i_column, of_ops.to(kind), mask=i_column < columns)
        tl.store(p_grad_edges + i_edge + tl.arange(0, 1), of_edge.to(kind))


def specimens(dtype: torch.dtype, widths: tuple[Width, ...] = WIDTHS) -> list[Specimen]:
    """Each kernel as a launch has it, at the widths of the usual networks."""
    kernels: dict[str, Any] = {"sums": sums, "mix": mix}
    return mixed_cell_specimens.specimens(kernels, dtype, widths)
