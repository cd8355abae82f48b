"""What the kernels of mixed_cell share: rows of the plan's table, tiles of a state, stencils, pools, merged sums.

Letters: N images, C channels of a state, CQ of them that pass through an edge's candidates, H W pixels of an input, Ho Wo of
a node, m = N*Ho*Wo, BP pixels and BC channels of a tile (BC a power of two, at least 16 for the tensor cores).
Prefixes: p_ pointer, i_ index, o_ offset, m_ mask (of a tile; the interpreter cannot combine one with a scalar condition).
Offsets in the table count blocks of 16 numbers, so that the compiler sees that addresses are aligned.
"""

import triton
import triton.language as tl

from fastdarts.kernels import mixed_cell_table as rows

BLOCK = tl.constexpr(rows.ALIGN)
# arguments whose values make no other kernel
INTEGERS = ["listed", "units", "edges_at", "terms", "nodes_at", "states_at", "pools_at", "norms_at", "sums_at", "columns"]
INTEGERS += ["H", "W", "Ho", "Wo", "m", "pixels", "per", "parts", "sum_parts", "middle_parts", "numbers", "most_taps"]


def _numbers(row: type[tuple]) -> list[tl.constexpr]:
    """Where each field of a row of the table is."""
    return [tl.constexpr(i) for i in range(len(row._fields))]


# in the order of rows.Unit, rows.Edge, ...: the fields that kernels read, and last the length of a row
(
    UNIT_SOURCE,
    UNIT_STATE,
    UNIT_EDGE,
    UNIT_STRIDE,
    UNIT_KERNEL,
    UNIT_DILATION,
    UNIT_TAPS,
    UNIT_HALVES,
    UNIT_DEPTHWISE,
    UNIT_POINTWISE,
    UNIT_Y,
    UNIT_NORM,
    UNIT_BEFORE_Y,
    UNIT_BEFORE_NORM,
    UNIT_BEFORE_GRAD,
    UNIT_GRAD,
    UNIT_MIDDLE,
    UNIT_SLOT,
    UNIT_DZ,
) = _numbers(rows.Unit)
UNIT = tl.constexpr(len(rows.Unit._fields))
(
    EDGE_SOURCE,
    EDGE_STATE,
    EDGE_STRIDE,
    EDGE_TERMS,
    EDGE_TERMS_END,
    EDGE_MAX,
    EDGE_MAX_NORM,
    EDGE_AVG,
    EDGE_AVG_NORM,
    EDGE_PLAIN,
    EDGE_SKIP,
    EDGE_UNITS,
    EDGE_UNITS_END,
    EDGE_GRAD,
    EDGE_POOL,
    EDGE_SUMS,
    EDGE_SUMS_END,
) = _numbers(rows.Edge)
EDGE = tl.constexpr(len(rows.Edge._fields))
TERM_Y, TERM_NORM, TERM_COLUMN = _numbers(rows.Term)
TERM = tl.constexpr(len(rows.Term._fields))
NODE_NODE, NODE_STATE, NODE_EDGES, NODE_EDGES_END = _numbers(rows.Node)
NODE = tl.constexpr(len(rows.Node._fields))
STATE_SOURCE, STATE_STATE, STATE_NODE, STATE_GRAD, STATE_LEAVING, STATE_LEAVING_END = _numbers(rows.State)
STATE = tl.constexpr(len(rows.State._fields))
(
    POOL_SOURCE,
    POOL_STATE,
    POOL_EDGE,
    POOL_STRIDE,
    POOL_MAX_SLOT,
    POOL_AVG_SLOT,
    POOL_LEAVING,
    POOL_LEAVING_END,
    POOL_DMAX,
    POOL_PLACE,
    POOL_DAVG,
) = _numbers(rows.Pool)
POOL = tl.constexpr(len(rows.Pool._fields))
NORM_NORM, NORM_SLOT = _numbers(rows.Norm)
NORM = tl.constexpr(len(rows.Norm._fields))
SUM_EDGE, SUM_KIND, SUM_COLUMN, SUM_Y, SUM_NORM = _numbers(rows.Sum)
SUM = tl.constexpr(len(rows.Sum._fields))
KIND_Y, KIND_MAX, KIND_AVG, KIND_SKIP, KIND_BYPASS = (tl.constexpr(int(kind)) for kind in rows.Kind)


@triton.jit
def state_of(p_x0, p_x1, p_x2, p_x3, p_saved, source, place):
    """Where a state lies: an input, or, for source -1, among what the forward kept."""
    p_x = p_saved + place * BLOCK
    if source == 0:
        p_x = p_x0
    if source == 1:
        p_x = p_x1
    if source == 2:
        p_x = p_x2
    if source == 3:
        p_x = p_x3
    return p_x


@triton.jit
def coordinates(i_pixel, height, width):
    """(image, row, column) of a pixel."""
    i_line = i_pixel // width
    i_image = i_line // height
    return i_image, i_line - i_image * height, i_pixel - i_line * width


@triton.jit
def channels_of(p_channels, i_edge, CQ: tl.constexpr, BC: tl.constexpr, CHOSEN: tl.constexpr):
    """Which channels of its state pass through an edge's candidates, (BC,)."""
    i_c = tl.arange(0, BC)
    if CHOSEN:
        i_c = tl.load(p_channels + i_edge * CQ + i_c, mask=i_c < CQ, other=0).to(tl.int32)
    return i_c


@triton.jit
def through_of(p_places, i_edge, i_tile, i_channel, m_channel, C: tl.constexpr, CHOSEN: tl.constexpr):
    """At which place channels of a state pass through an edge's candidates; -1 for those that pass by."""
    if CHOSEN:
        i_through = tl.load(p_places + i_edge * C + i_channel, mask=m_channel, other=-1)
    else:
        i_through = tl.where(i_tile == 0, tl.where(m_channel, i_channel, -1), -1)
    return i_through


@triton.jit
def tile_at(p_x, i_image, i_row, i_column, m_pixel, height, width, i_channel, m_channel, ROW: tl.constexpr):
    """Numbers of an image's pixels in float32, 0 outside the image; and which pixels are inside."""
    m_inside = m_pixel & (i_row >= 0) & (i_row < height) & (i_column >= 0) & (i_column < width)
    i_pixel = ((i_image * height + i_row) * width + i_column).to(tl.int64)
    mask = m_inside[:, None] & m_channel[None, :]
    return tl.load(p_x + i_pixel[:, None] * ROW + i_channel[None, :], mask=mask, other=0.0).to(tl.float32), m_inside


@triton.jit
def rows_of(p_x, i_pixel, m_pixel, i_channel, m_channel, ROW):
    """Numbers of pixels in float32, 0 where masked."""
    mask = m_pixel[:, None] & m_channel[None, :]
    return tl.load(p_x + i_pixel.to(tl.int64)[:, None] * ROW + i_channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def rectified(x):
    """ReLU that keeps NaN."""
    return tl.where(x <= 0, 0.0, x)


@triton.jit
def three(p_rows, i_row, i_c, m_c, CQ: tl.constexpr):
    """Row i_row of a (rows, 3, CQ) table of float32: three times (BC,)."""
    p_row = p_rows + i_row * 3 * CQ + i_c
    first = tl.load(p_row, mask=m_c, other=0.0)
    second = tl.load(p_row + CQ, mask=m_c, other=0.0)
    return first, second, tl.load(p_row + 2 * CQ, mask=m_c, other=0.0)


@triton.jit
def normalised(y, mean, scale, shift):
    """xhat: the mean's head is taken away before anything is rounded, its tail is in the shift."""
    return (y - mean[None, :]) * scale[None, :] + shift[None, :]


@triton.jit
def rectified_input(x, m_inside, mean, scale, shift, SECOND: tl.constexpr):
    """What a depthwise convolution takes: relu(x), or, in a second half, relu(xhat); 0 outside the image in either."""
    if SECOND:
        x = tl.where(m_inside[:, None], normalised(x, mean, scale, shift), 0.0)
    return rectified(x)


# ---------------------------------------------------------------------------------------------------- stencils


@triton.jit
def depthwise(
    p_x,
    p_weights,
    i_channel,
    i_c,
    m_c,
    i_image,
    i_row,
    i_column,
    m_pixel,
    height,
    width,
    stride,
    dilation,
    mean,
    scale,
    shift,
    ROW: tl.constexpr,
    K: tl.constexpr,
    SECOND: tl.constexpr,
):
    """The depthwise convolution of relu(x), of relu(xhat) where SECOND, at a tile of output pixels: (BP, BC)."""
    out = tl.full([i_row.shape[0], i_c.shape[0]], 0.0, tl.float32)
    reach = dilation * (K // 2)
    for i in range(K):
        for j in tl.static_range(K):
            row, column = i_row * stride + (i * dilation - reach), i_column * stride + (j * dilation - reach)
            x, m_inside = tile_at(p_x, i_image, row, column, m_pixel, height, width, i_channel, m_c, ROW)
            x = rectified_input(x, m_inside, mean, scale, shift, SECOND)
            out += x * tl.load(p_weights + i_c * (K * K) + (i * K + j), mask=m_c, other=0.0).to(tl.float32)[None, :]
    return out


@triton.jit
def depthwise_transposed(
    p_dz,
    p_weights,
    i_c,
    m_c,
    i_image,
    i_row,
    i_column,
    m_pixel,
    height,
    width,
    stride,
    dilation,
    ROW: tl.constexpr,
    K: tl.constexpr,
):
    """What a tile of input pixels gets from dz (height, width) through the depthwise convolution: (BP, BC)."""
    out = tl.full([i_row.shape[0], i_c.shape[0]], 0.0, tl.float32)
    reach = dilation * (K // 2)
    for i in range(K):
        for j in tl.static_range(K):
            row, column = i_row + (reach - i * dilation), i_column + (reach - j * dilation)
            m_met = m_pixel & ((row & (stride - 1)) == 0) & ((column & (stride - 1)) == 0)
            row, column = row >> (stride - 1), column >> (stride - 1)
            dz, _ = tile_at(p_dz, i_image, row, column, m_met, height, width, i_c, m_c, ROW)
            out += dz * tl.load(p_weights + i_c * (K * K) + (i * K + j), mask=m_c, other=0.0).to(tl.float32)[None, :]
    return out


@triton.jit
def tap_offset(t, taps, halves):
    """(rows, columns) from a dense convolution's output pixel, times its stride, to what tap t reads."""
    side = tl.where(taps == 9, 3, 1)
    return tl.where(halves != 0, t, t // side - side // 2), tl.where(halves != 0, t, t % side - side // 2)


@triton.jit
def dense_matrix(p_weights, t, taps, halves, i_out, m_out, i_in, m_in, CQ: tl.constexpr):
    """Tap t of a dense convolution: (outputs, inputs), in the order in which the indices are given."""
    i_flat = i_out * CQ + i_in
    o_tap = tl.where(halves != 0, i_flat, i_flat * taps + t)
    m_tap = m_out & m_in & (tl.where(halves != 0, i_out // (CQ // 2), t) == t)
    return tl.load(p_weights + o_tap, mask=m_tap, other=0.0)


@triton.jit
def pools(p_x, i_channel, m_c, i_image, i_row, i_column, m_pixel, height, width, stride, ROW: tl.constexpr):
    """Maximum, its place among the nine (the first in row-major order), mean and count of a 3x3 window."""
    best = tl.full([i_row.shape[0], i_channel.shape[0]], float("-inf"), tl.float32)
    total = tl.full([i_row.shape[0], i_channel.shape[0]], 0.0, tl.float32)
    place = tl.full([i_row.shape[0], i_channel.shape[0]], 0, tl.int32)
    count = tl.full([i_row.shape[0]], 0.0, tl.float32)
    for i in range(3):
        for j in tl.static_range(3):
            row, column = i_row * stride + (i - 1), i_column * stride + (j - 1)
            x, m_inside = tile_at(p_x, i_image, row, column, m_pixel, height, width, i_channel, m_c, ROW)
            m_better = m_inside[:, None] & ((x > best) | (x != x))
            best = tl.where(m_better, x, best)
            place = tl.where(m_better, i * 3 + j, place)
            total += x
            count += tl.where(m_inside, 1.0, 0.0)
    count = tl.maximum(count, 1.0)
    return tl.where(m_pixel[:, None], best, 0.0), place, total / count[:, None], count


@triton.jit
def largest_of_four(p_x, i_channel, m_c, i_image, i_row, i_column, m_pixel, height, width, ROW: tl.constexpr):
    """The 2x2 maximum at output pixels; place (the first) and value."""
    best, _ = tile_at(p_x, i_image, i_row * 2, i_column * 2, m_pixel, height, width, i_channel, m_c, ROW)
    place = tl.full(best.shape, 0, tl.int32)
    for t in tl.static_range(1, 4):
        row, column = i_row * 2 + t // 2, i_column * 2 + t % 2
        x, _ = tile_at(p_x, i_image, row, column, m_pixel, height, width, i_channel, m_c, ROW)
        m_better = (x > best) | (x != x)
        best = tl.where(m_better, x, best)
        place = tl.where(m_better, t, place)
    return best, place


# -------------------------------------------------------------------------------------------------------- sums


@triton.jit
def deviations(y, m_pixel, pivot, total, squares, is_first):
    """Add a tile to the sums of y less the pivot, and of its squares; the pivot is the mean of the part's first tile."""
    y = tl.where(m_pixel[:, None], y, 0.0)
    if is_first:
        pivot = tl.sum(y, axis=0) / tl.sum(tl.where(m_pixel, 1.0, 0.0), axis=0)
    y = tl.where(m_pixel[:, None], y - pivot[None, :], 0.0)
    return pivot, total + tl.sum(y, axis=0), squares + tl.sum(y * y, axis=0)


@triton.jit
def store_three(p_rows, i_row, i_c, m_c, first, second, third, CQ: tl.constexpr):
    """Write row i_row of a (rows, 3, CQ) table."""
    p_row = p_rows + i_row * 3 * CQ + i_c
    tl.store(p_row, first, mask=m_c)
    tl.store(p_row + CQ, second, mask=m_c)
    tl.store(p_row + 2 * CQ, third, mask=m_c)


@triton.jit
def merged(p_rows, i_row, parts, i_c, m_c, CQ: tl.constexpr):
    """The sums over parts of rows (parts, 2, CQ) of float32 from i_row on, in float64 and in order: twice (BC,)."""
    first = tl.full([i_c.shape[0]], 0.0, tl.float64)
    second = tl.full([i_c.shape[0]], 0.0, tl.float64)
    for part in range(0, parts, 16):
        i_part = part + tl.arange(0, 16)
        p_part = p_rows + ((i_row + i_part) * 2 * CQ)[:, None] + i_c[None, :]
        mask = (i_part < parts)[:, None] & m_c[None, :]
        first += tl.sum(tl.load(p_part, mask=mask, other=0.0).to(tl.float64), axis=0)
        second += tl.sum(tl.load(p_part + CQ, mask=mask, other=0.0).to(tl.float64), axis=0)
    return first, second


@triton.jit
def gradient_of_norm(
    p_coefficients, p_norms, p_middles, p_row, m, middle_parts, i_c, m_c, CQ: tl.constexpr, BATCH: tl.constexpr
):
    """What turns the gradient that reaches a unit's BN into dL/dy = a (g - c0 - c1 xhat): a, c0, c1."""
    i_norm = tl.load(p_row + UNIT_NORM)
    a, c0, c1 = three(p_coefficients, i_norm, i_c, m_c, CQ)
    if tl.load(p_row + UNIT_MIDDLE) != 0:
        _, a, _ = three(p_norms, i_norm, i_c, m_c, CQ)
        if BATCH:
            first, second = merged(p_middles, tl.load(p_row + UNIT_SLOT) * middle_parts, middle_parts, i_c, m_c, CQ)
            c0 = (first / m.to(tl.float64)).to(tl.float32)
            c1 = (second / m.to(tl.float64)).to(tl.float32)
        else:
            c0, c1 = a * 0.0, a * 0.0
    return a, c0, c1


@triton.jit
def gradient_tile(p_g, p_y, i_pixel, m_pixel, g_row, i_g, i_c, m_c, mean, scale, shift, a, c0, c1, CQ: tl.constexpr):
    """dL/dy of a tile, from the gradient that reaches its BN and from y: (BP, BC)."""
    g = rows_of(p_g, i_pixel, m_pixel, i_g, m_c, g_row)
    xhat = normalised(rows_of(p_y, i_pixel, m_pixel, i_c, m_c, CQ), mean, scale, shift)
    return tl.where(m_pixel[:, None], a[None, :] * (g - c0[None, :] - xhat * c1[None, :]), 0.0)
