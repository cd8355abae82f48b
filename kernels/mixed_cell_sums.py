"""Backward kernels of mixed_cell for BN's two sums and, from these, the gradients of ops, edges, and affine parameters.

Notation as in mixed_cell_parts.py, launches as in mixed_cell_forward.py. With g = dL/ds of a node and m pixels,
dL/dy = beta a r (g - S0 / m - xhat S1 / m) for S0 = sum g and S1 = sum g xhat, and dL/da = beta * sum over channels of S1.
A BN's scale multiplies dL/dy; dL/dscale = beta a S1, dL/dshift = beta a S0, and dL/da = beta * sum of scale S1 + shift S0.
Where each image has a beta of its own, g is beta g in all of this, and beta is 1.
"""

from typing import Any

import torch
import triton.language as tl

from fastdarts.kernels import mixed_cell_parts as cell
from fastdarts.kernels import mixed_cell_specimens
from fastdarts.kernels.compile import Specimen
from fastdarts.kernels.mixed_cell_parts import BLOCK, EDGE, KIND, SUM, UNIT
from fastdarts.kernels.mixed_cell_specimens import WIDTHS, Width


@cell.kernel
def grad_sums(
    p_inputs, p_saved, p_work, p_edges, p_channels, p_inverse, p_norms, p_sums, p_table,
    o_listed, o_edges, o_sums, H, W, Ho, Wo, m, per, parts,
    C: tl.constexpr, CQ: tl.constexpr, BC: tl.constexpr, TILE: tl.constexpr, CHOSEN: tl.constexpr, PER_IMAGE: tl.constexpr,
):  # fmt: skip
    """Sum, over a part and by channel, a node's gradient g, and g times one term of an edge into the node.

    The term is a candidate's xhat, the mean without BN, the state itself, or the bypassed channels (summed over channels too).
    """
    BP: tl.constexpr = TILE // BC if TILE // BC > 16 else 16
    part = tl.program_id(0) % parts
    i_sum = tl.load(p_table + o_listed + tl.program_id(0) // parts)
    p_row = p_table + o_sums + i_sum * SUM.SIZE
    kind, i_edge = tl.load(p_row + SUM.KIND), tl.load(p_row + SUM.EDGE).to(tl.int32)
    p_edge = p_table + o_edges + i_edge * EDGE.SIZE
    source, stride = tl.load(p_edge + EDGE.SOURCE), tl.load(p_edge + EDGE.STRIDE).to(tl.int32)
    p_x = cell.state_of(p_inputs, p_saved, source, tl.load(p_edge + EDGE.STATE))
    height, width = tl.where(source < 0, Ho, H), tl.where(source < 0, Wo, W)
    p_g = p_work + tl.load(p_edge + EDGE.GRAD) * BLOCK
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    i_channel = cell.channels_of(p_channels, i_edge, CQ, BC, CHOSEN)
    b_mean = tl.full([BC], 0.0, tl.float32)
    b_scale = tl.full([BC], 1.0, tl.float32)
    b_shift = tl.full([BC], 0.0, tl.float32)
    if tl.load(p_row + SUM.NORM) >= 0:
        b_mean, b_scale, b_shift = cell.three(p_norms, tl.load(p_row + SUM.NORM), i_c, m_c, CQ)
    b_zeroth = tl.full([BP, BC], 0.0, tl.float32)
    b_first = tl.full([BP, BC], 0.0, tl.float32)
    begin = part * per
    end = tl.minimum(begin + per, m)
    p_y = p_saved + tl.load(p_row + SUM.Y) * BLOCK
    for start in range(begin, end, BP):
        i_pixel = start + tl.arange(0, BP)
        m_pixel = i_pixel < end
        i_image, i_row, i_column = cell.coordinates(i_pixel, Ho, Wo)
        if kind == KIND.BYPASS:
            for i_first in range(0, C, BC):
                i_all = i_first + i_c
                m_all = i_all < C
                m_by = m_all & (cell.through_of(p_inverse, i_edge, i_all // CQ, i_all, m_all, C, CHOSEN) < 0)
                b_g = cell.rows_of(p_g, i_pixel, m_pixel, i_all, m_by, C)
                if stride == 1:
                    b_first += b_g * cell.rows_of(p_x, i_pixel, m_pixel, i_all, m_by, C)
                else:
                    b_best, _ = cell.largest_of_four(p_x, i_all, m_by, i_image, i_row, i_column, m_pixel, height, width, C)
                    b_first += b_g * b_best
        else:
            b_g = cell.rows_of(p_g, i_pixel, m_pixel, i_channel, m_c, C)
            if PER_IMAGE:
                b_g *= cell.weights_of_images(p_edges, i_edge, i_image, m_pixel, m // (Ho * Wo))
            b_zeroth += b_g
            if kind == KIND.Y:
                b_first += b_g * cell.normalised(cell.rows_of(p_y, i_pixel, m_pixel, i_c, m_c, CQ), b_mean, b_scale, b_shift)
            elif kind == KIND.SKIP:
                b_first += b_g * cell.rows_of(p_x, i_pixel, m_pixel, i_channel, m_c, C)
            else:
                b_best, _, b_average, _ = cell.pools(
                    p_x, i_channel, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, C
                )
                b_first += b_g * cell.normalised(tl.where(kind == KIND.MAX, b_best, b_average), b_mean, b_scale, b_shift)
    b_of_channel = tl.sum(b_first, axis=0)
    if kind == KIND.BYPASS:
        b_of_channel = tl.where(i_c == 0, tl.sum(b_of_channel, axis=0), 0.0)
    p_part = p_sums + (i_sum * parts + part) * 2 * CQ + i_c
    tl.store(p_part, tl.sum(b_zeroth, axis=0), mask=m_c)
    tl.store(p_part + CQ, b_of_channel, mask=m_c)


@cell.kernel
def mix_weights(
    p_ops, p_edges, p_affine, p_scaled, p_sums, p_coefficients, p_grad_ops, p_grad_edges, p_grad_affine, p_table,
    o_listed, o_edges, o_sums, m, sum_parts, columns,
    NORMS: tl.constexpr, CQ: tl.constexpr, BC: tl.constexpr, COLUMNS: tl.constexpr, WEIGHTED: tl.constexpr,
    BATCH: tl.constexpr, AFFINE: tl.constexpr, SUMMED: tl.constexpr, NEED_OPS: tl.constexpr, NEED_AFFINE: tl.constexpr,
):  # fmt: skip
    """Compute an edge's share of the gradients of ops and edges, and a, c0, c1 of each BN's dL/dy = a (g - c0 - c1 xhat).

    Also the gradients of the BNs' scales and shifts, if needed.
    """
    i_edge = tl.load(p_table + o_listed + tl.program_id(0))
    p_edge = p_table + o_edges + i_edge * EDGE.SIZE
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    i_column = tl.arange(0, COLUMNS)
    beta = 1.0
    if WEIGHTED == 1:
        beta = tl.load(p_edges + i_edge).to(tl.float32)
    b_of_ops = tl.full([COLUMNS], 0.0, tl.float64)
    b_of_edge = tl.full([1], 0.0, tl.float64)
    b_zeroth = tl.full([BC], 0.0, tl.float64)
    b_first = tl.full([BC], 0.0, tl.float64)
    for i_sum in range(tl.load(p_edge + EDGE.SUMS).to(tl.int32), tl.load(p_edge + EDGE.SUMS_END).to(tl.int32)):
        p_row = p_table + o_sums + i_sum * SUM.SIZE
        column, i_norm = tl.load(p_row + SUM.COLUMN), tl.load(p_row + SUM.NORM)
        if SUMMED:
            b_zeroth, b_first = cell.merged(p_sums, i_sum * sum_parts, sum_parts, i_c, m_c, CQ)
        total = tl.sum(b_first, axis=0)
        if AFFINE and i_norm >= 0:
            b_gamma, b_beta = cell.affine_of(p_affine, i_norm, i_c, m_c, NORMS, CQ)
            total = tl.sum(b_gamma * b_first + b_beta * b_zeroth, axis=0)
        weight = tl.load(p_ops + i_edge * columns + column, mask=column >= 0, other=1.0).to(tl.float32)
        b_of_ops += tl.where(i_column == column, total * beta, 0.0)
        b_of_edge += total * weight
        if i_norm >= 0:
            _, b_scale, _ = cell.three(p_scaled, i_norm, i_c, m_c, CQ)
            b_c0, b_c1 = b_scale * 0.0, b_scale * 0.0
            if BATCH:
                b_c0, b_c1 = (b_zeroth / m.to(tl.float64)).to(tl.float32), (b_first / m.to(tl.float64)).to(tl.float32)
            cell.store_three(p_coefficients, i_norm, i_c, m_c, beta * weight * b_scale, b_c0, b_c1, CQ)
            if NEED_AFFINE:
                mixed = beta * weight
                cell.store_affine(p_grad_affine, i_norm, i_c, m_c, mixed * b_first, mixed * b_zeroth, NORMS, CQ)
    if NEED_OPS:
        kind = p_grad_ops.dtype.element_ty
        tl.store(p_grad_ops + i_edge * columns + i_column, b_of_ops.to(kind), mask=i_column < columns)
        tl.store(p_grad_edges + i_edge + tl.arange(0, 1), b_of_edge.to(kind))


@cell.kernel
def affine_gradient(
    p_middles, p_grad_affine, p_table,
    o_listed, o_units, middle_parts,
    NORMS: tl.constexpr, CQ: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of scale and shift of the BN between a unit's two halves, from the sums of `bn_backward_inner`."""
    p_row = p_table + o_units + tl.load(p_table + o_listed + tl.program_id(0)) * UNIT.SIZE
    i_c = tl.arange(0, BC)
    m_c = i_c < CQ
    i_first = tl.load(p_row + UNIT.SLOT) * middle_parts
    b_zeroth, b_first = cell.merged(p_middles, i_first, middle_parts, i_c, m_c, CQ)
    cell.store_affine(p_grad_affine, tl.load(p_row + UNIT.BEFORE_NORM), i_c, m_c, b_first, b_zeroth, NORMS, CQ)


def specimens(dtype: torch.dtype, widths: tuple[Width, ...] = WIDTHS) -> list[Specimen]:
    """Return each kernel as launched, at the widths of the usual networks."""
    kernels: dict[str, Any] = {"grad_sums": grad_sums, "mix_weights": mix_weights, "affine_gradient": affine_gradient}
    return mixed_cell_specimens.specimens(kernels, dtype, widths)
