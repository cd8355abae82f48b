"""Masked L1 or L2 loss of an upsampled sum of low-resolution levels, with its gradient: one pass over the pixels.

fastdarts/ops/masked_loss.py documents the arguments and has the definition. A program compares one colour of a
tile of pixels and folds its errors back to the few cells of each level around the tile: it writes those sums, not the
errors. Then the tiles' sums are added in a fixed order, so results are bitwise reproducible.

Notation: N images of H x W pixels, patches of SIDE x SIDE, tiles of ROWS x COLS, levels of h x w cells, of which a tile
touches at most K x J; `part` numbers in all levels together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from fastdarts.kernels import launch
from fastdarts.kernels.arguments import MaskedLoss, MaskedLossResults
from fastdarts.kernels.compile import Specimen, pointer


@triton.jit
def place(i, IN: tl.constexpr, OUT: tl.constexpr):
    """Return near, far and far's share for number i of a bilinear interpolation from IN to OUT (align_corners=False)."""
    o_at = tl.maximum((2 * i + 1) * IN - OUT, 0)  # in units of 1 / (2 OUT)
    i_near = o_at // (2 * OUT)
    o_rest = o_at - i_near * (2 * OUT)
    return i_near, tl.where(o_rest == 0, i_near, tl.minimum(i_near + 1, IN - 1)), o_rest.to(tl.float32) / (2 * OUT)


@triton.jit
def weight(i, cell, IN: tl.constexpr, OUT: tl.constexpr):
    """Return the share of `cell` in number i."""
    i_near, i_far, b_share = place(i, IN, OUT)
    return tl.where(i_near == cell, 1 - b_share, 0.0) + tl.where(i_far == cell, b_share, 0.0)


@triton.jit
def compare(
    p_levels, p_bias, p_images, p_flip, p_mask, p_sums, p_parts,
    shift0, shift1, shift2, scale0, scale1, scale2,
    SIZES: tl.constexpr, STRIDES: tl.constexpr, FOOTPRINTS: tl.constexpr, OFFSETS: tl.constexpr, PART: tl.constexpr,
    LEVELS: tl.constexpr, H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr, SQUARED: tl.constexpr,
    GRADIENT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Compute sums (3, programs): losses, slopes, masked pixels; parts (programs, PART): slopes folded back to the levels.

    For each level, SIZES has h, w; STRIDES n, c, y, x; FOOTPRINTS K, J and J's power of two; OFFSETS its offset in a part.
    """
    TILES_W: tl.constexpr = (W + COLS - 1) // COLS
    TILES_H: tl.constexpr = (H + ROWS - 1) // ROWS
    i_tile = tl.program_id(0)
    colour = i_tile % 3
    col0 = i_tile // 3 % TILES_W * COLS
    row0 = i_tile // (3 * TILES_W) % TILES_H * ROWS
    n = (i_tile // (3 * TILES_W * TILES_H)).to(tl.int64)
    i_row = row0 + tl.arange(0, ROWS)[:, None]
    i_col = col0 + tl.arange(0, COLS)[None, :]
    i_patch = i_row // SIDE * (W // SIDE) + i_col // SIDE
    m_pixel = (i_row < H) & (i_col < W)
    m_pixel = m_pixel & (tl.load(p_mask + n * ((H // SIDE) * (W // SIDE)) + i_patch, mask=m_pixel, other=0) != 0)

    i_source = tl.where(tl.load(p_flip + n) != 0, W - 1 - i_col, i_col)
    b_pixel = tl.load(p_images + n * (H * W * 3) + (i_row * W + i_source) * 3 + colour, mask=m_pixel, other=0)
    shift = tl.where(colour == 0, shift0, tl.where(colour == 1, shift1, shift2))
    scale = tl.where(colour == 0, scale0, tl.where(colour == 1, scale1, scale2))
    b_error = tl.load(p_bias + colour).to(tl.float32) - (b_pixel.to(tl.float32) - shift) * scale
    for i in tl.static_range(LEVELS):
        i_y_near, i_y_far, b_y_share = place(i_row, SIZES[2 * i], H)
        i_x_near, i_x_far, b_x_share = place(i_col, SIZES[2 * i + 1], W)
        p_plane = p_levels[i] + n * STRIDES[4 * i] + colour * STRIDES[4 * i + 1]
        p_near, p_far = p_plane + i_y_near * STRIDES[4 * i + 2], p_plane + i_y_far * STRIDES[4 * i + 2]
        i_x_near, i_x_far = i_x_near * STRIDES[4 * i + 3], i_x_far * STRIDES[4 * i + 3]
        b_left = tl.load(p_near + i_x_near, mask=m_pixel, other=0.0).to(tl.float32)
        b_right = tl.load(p_near + i_x_far, mask=m_pixel, other=0.0).to(tl.float32)
        b_near = b_left + b_x_share * (b_right - b_left)
        b_left = tl.load(p_far + i_x_near, mask=m_pixel, other=0.0).to(tl.float32)
        b_right = tl.load(p_far + i_x_far, mask=m_pixel, other=0.0).to(tl.float32)
        b_far = b_left + b_x_share * (b_right - b_left)
        b_error += b_near + b_y_share * (b_far - b_near)
    b_error = tl.where(m_pixel, b_error, 0.0)

    if SQUARED:
        b_slope = b_error
        b_loss = b_error * b_error
    else:
        b_slope = tl.where(b_error > 0, 1.0, tl.where(b_error < 0, -1.0, 0.0))
        b_loss = tl.abs(b_error)
    programs = tl.num_programs(0)
    tl.store(p_sums + i_tile, tl.sum(tl.sum(b_loss, 1), 0))
    tl.store(p_sums + programs + i_tile, tl.sum(tl.sum(b_slope, 1), 0))
    tl.store(p_sums + 2 * programs + i_tile, tl.sum(tl.sum(m_pixel.to(tl.float32), 1), 0))

    if GRADIENT:
        p_part = p_parts + i_tile.to(tl.int64) * PART
        i_column = col0 + tl.arange(0, COLS)[:, None]
        for i in tl.static_range(LEVELS):
            y_first, _, _ = place(row0, SIZES[2 * i], H)
            x_first, _, _ = place(col0, SIZES[2 * i + 1], W)
            i_cell = tl.arange(0, FOOTPRINTS[3 * i + 2])
            b_across = weight(i_column, x_first + i_cell[None, :], SIZES[2 * i + 1], W)
            for k in range(FOOTPRINTS[3 * i]):
                b_row = tl.sum(b_slope * weight(i_row, y_first + k, SIZES[2 * i], H), 0)
                b_cells = tl.sum(b_row[:, None] * b_across, 0)
                tl.store(p_part + OFFSETS[i] + k * FOOTPRINTS[3 * i + 1] + i_cell, b_cells, mask=i_cell < FOOTPRINTS[3 * i + 1])


@triton.jit
def total(p_sums, p_loss, p_grad_bias, p_factor, programs, SQUARED: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    """Compute the loss, the bias' gradient, and factor, which scales sums of slopes. One program."""
    i_first = tl.arange(0, BLOCK)
    b_loss = tl.full([BLOCK], 0, tl.float64)
    b_terms = tl.full([BLOCK], 0, tl.float64)
    b_slope0 = tl.full([BLOCK], 0, tl.float64)
    b_slope1 = tl.full([BLOCK], 0, tl.float64)
    b_slope2 = tl.full([BLOCK], 0, tl.float64)
    for first in range(0, programs, BLOCK):
        i_tile = first + i_first
        m_tile = i_tile < programs
        b_loss += tl.load(p_sums + i_tile, mask=m_tile, other=0.0)
        b_terms += tl.load(p_sums + 2 * programs + i_tile, mask=m_tile, other=0.0)
        if GRADIENT:
            b_slope = tl.load(p_sums + programs + i_tile, mask=m_tile, other=0.0)
            b_slope0 += tl.where(i_tile % 3 == 0, b_slope, 0.0)
            b_slope1 += tl.where(i_tile % 3 == 1, b_slope, 0.0)
            b_slope2 += tl.where(i_tile % 3 == 2, b_slope, 0.0)
    count = tl.sum(b_terms, 0)
    tl.store(p_loss, (tl.sum(b_loss, 0) / count).to(tl.float32))
    if GRADIENT:
        factor = tl.where(count > 0, (2.0 if SQUARED else 1.0) / tl.maximum(count, 1.0), 0.0)
        tl.store(p_factor, factor)
        tl.store(p_grad_bias, (factor * tl.sum(b_slope0, 0)).to(tl.float32))
        tl.store(p_grad_bias + 1, (factor * tl.sum(b_slope1, 0)).to(tl.float32))
        tl.store(p_grad_bias + 2, (factor * tl.sum(b_slope2, 0)).to(tl.float32))


@triton.jit
def fold(
    p_parts, p_factor, p_grad,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, K: tl.constexpr, J: tl.constexpr, OFFSET: tl.constexpr, PART: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute one level's gradient: each cell adds its shares of the tiles around it. A program has BLOCK cells of a colour."""
    TILES_W: tl.constexpr = (W + COLS - 1) // COLS
    TILES_H: tl.constexpr = (H + ROWS - 1) // ROWS
    CELLS: tl.constexpr = SIZE[0] * SIZE[1]
    BLOCKS: tl.constexpr = (CELLS + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    i_cell = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    i_y, i_x = i_cell // SIZE[1], i_cell % SIZE[1]
    colour = program // BLOCKS % 3
    n = (program // BLOCKS // 3).to(tl.int64)
    b_slope = tl.full([BLOCK], 0, tl.float64)
    for i in range(TILES_H * TILES_W):
        y_first, _, _ = place(i // TILES_W * ROWS, SIZE[0], H)
        x_first, _, _ = place(i % TILES_W * COLS, SIZE[1], W)
        i_k, i_j = i_y - y_first, i_x - x_first
        m_cell = (i_cell < CELLS) & (i_k >= 0) & (i_k < K) & (i_j >= 0) & (i_j < J)
        p_part = p_parts + ((n * (TILES_H * TILES_W) + i) * 3 + colour) * PART + OFFSET
        b_slope += tl.load(p_part + i_k * J + i_j, mask=m_cell, other=0.0)
    b_grad = (b_slope * tl.load(p_factor)).to(tl.float32)
    p_cell = p_grad + n * STRIDE[0] + colour * STRIDE[1] + i_y * STRIDE[2] + i_x * STRIDE[3]
    tl.store(p_cell, b_grad, mask=i_cell < CELLS)


def _near(i: int, size: int, out: int) -> int:
    """Return `place`'s near."""
    return max((2 * i + 1) * size - out, 0) // (2 * out)


def _footprint(size: int, out: int, tile: int) -> int:
    """Return the largest number of cells of `size` around a tile of `tile` of `out` numbers."""
    firsts = range(0, out, tile)
    return max(min(_near(min(i + tile, out) - 1, size, out) + 1, size - 1) - _near(i, size, out) + 1 for i in firsts)


@dataclass(frozen=True)
class Tiling:
    """Compile-time parameters of the kernels: sizes of the image, a patch, a tile and each level."""

    H: int
    W: int
    SIDE: int
    ROWS: int
    COLS: int
    sizes: tuple[tuple[int, int], ...]

    @property
    def tiles(self) -> int:
        """Return the number of tiles of an image, times three colours."""
        return triton.cdiv(self.H, self.ROWS) * triton.cdiv(self.W, self.COLS)

    @property
    def footprints(self) -> list[tuple[int, int]]:
        return [(_footprint(h, self.H, self.ROWS), _footprint(w, self.W, self.COLS)) for h, w in self.sizes]

    @property
    def offsets(self) -> list[int]:
        """Return the offset of each level in a part, and last the part's size."""
        ends = [0]
        for k, j in self.footprints:
            ends.append(ends[-1] + k * j)
        return ends

    def compare(self, strides: Sequence[int], squared: bool, gradient: bool) -> dict:
        """Return `compare`'s constexprs."""
        return {
            "SIZES": tuple(n for size in self.sizes for n in size),
            "STRIDES": tuple(strides),
            "FOOTPRINTS": tuple(n for k, j in self.footprints for n in (k, j, triton.next_power_of_2(j))),
            "OFFSETS": tuple(self.offsets[:-1]),
            "LEVELS": len(self.sizes),
            "SIDE": self.SIDE,
            "SQUARED": squared,
            "GRADIENT": gradient,
        } | self._common()

    def fold(self, level: int, strides: Sequence[int], block: int) -> dict:
        """Return `fold`'s constexprs for one level; at most `block` cells a program."""
        (h, w), (k, j) = self.sizes[level], self.footprints[level]
        own = {"SIZE": (h, w), "STRIDE": tuple(strides), "K": k, "J": j, "OFFSET": self.offsets[level]}
        return own | {"BLOCK": min(block, triton.next_power_of_2(h * w))} | self._common()

    def _common(self) -> dict:
        return {"PART": self.offsets[-1], "H": self.H, "W": self.W, "ROWS": self.ROWS, "COLS": self.COLS}


def _tiling(H: int, W: int, side: int, sizes: Sequence[tuple[int, int]], settings: dict) -> Tiling:
    """Return the tiling by the launch settings, removed from `settings`, no larger than the image needs."""
    rows, cols = (min(settings.pop(name), triton.next_power_of_2(n)) for name, n in (("ROWS", H), ("COLS", W)))
    return Tiling(H, W, side, rows, cols, tuple(sizes))


def _summed(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a gradient as the op returns it; see ops.masked_loss."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def run(a: MaskedLoss) -> MaskedLossResults:
    """Compute loss, grad_levels, grad_bias of ops.masked_loss; two launches, and one for each level if gradients are needed."""
    levels, bias, images, flip, mask, mean, std, norm, need_grad = a
    N, H, W, _ = images.shape
    loss = bias.new_empty(())
    grad_levels = [torch.empty_like(level, dtype=_summed(level.dtype)) for level in levels] if need_grad else []
    grad_bias = bias.new_empty(3 if need_grad else 0, dtype=_summed(bias.dtype))
    target, dtype, squared = launch.target_of(images.device), levels[0].dtype, norm == "l2"
    compared, totalled, folded = (launch.settings(f"masked_loss.{k}", dtype, target) for k in ("compare", "total", "fold"))
    tiling = _tiling(H, W, H // mask.shape[1], [tuple(level.shape[2:]) for level in levels], compared)
    programs = N * tiling.tiles * 3
    sums = images.new_empty(3, programs, dtype=torch.float32)
    parts = images.new_empty(programs if need_grad else 0, tiling.offsets[-1], dtype=torch.float32)
    factor = images.new_empty((), dtype=torch.float64)
    numbers = [255 * m for m in mean] + [1 / (255 * s) for s in std]
    strides = [s for level in levels for s in level.stride()]
    pixels = bias.contiguous(), images.contiguous(), flip.contiguous().view(torch.int8), mask.contiguous().view(torch.int8)
    with launch.on(images.device):
        if programs:
            constexprs = tiling.compare(strides, squared, need_grad)
            compare[(programs,)](tuple(levels), *pixels, sums, parts, *numbers, **constexprs, **compared)
        total[(1,)](sums, loss, grad_bias, factor, programs, SQUARED=squared, GRADIENT=need_grad, **totalled)
        for i, grad in enumerate(grad_levels if programs else []):
            constexprs = tiling.fold(i, grad.stride(), folded["BLOCK"])
            grid = (N * 3 * triton.cdiv(grad.shape[2] * grad.shape[3], constexprs["BLOCK"]),)
            fold[grid](parts, factor, grad, **folded | constexprs)
    return MaskedLossResults(loss, grad_levels, grad_bias)


SPECIMENS = {  # H = W, side of a patch, sides of the levels
    "224 px, levels 28, 14, 7": (224, 8, (28, 14, 7)),
    "32 px, levels 32, 16, 8": (32, 4, (32, 16, 8)),
}


def specimens(dtype: torch.dtype) -> list[Specimen]:
    """Return the kernels with gradients, L1, levels in channels_last memory; `total` once."""
    number = pointer(dtype)
    found = []
    for label, (side, patch, levels) in SPECIMENS.items():
        strides = [(3 * n * n, 1, 3 * n, 3) for n in levels]

        def tiling(target: str, side: int = side, patch: int = patch, levels: tuple[int, ...] = levels) -> Tiling:
            return _tiling(side, side, patch, [(n, n) for n in levels], launch.settings("masked_loss.compare", dtype, target))

        def whole(target: str, tiling: Callable[[str], Tiling] = tiling, strides: list = strides) -> dict:
            return tiling(target).compare([s for level in strides for s in level], False, True)

        pointers = {"p_levels": (number,) * len(levels), "p_bias": number, "p_images": "*u8", "p_flip": "*i8"}
        pointers |= {"p_mask": "*i8", "p_sums": "*fp32", "p_parts": "*fp32"}
        numbers = {f"{name}{c}": "fp32" for name in ("shift", "scale") for c in range(3)}
        found.append(Specimen(compare, pointers | numbers, whole, "masked_loss.compare", dtype, label))
        for i, stride in enumerate(strides):

            def one(target: str, tiling: Callable[[str], Tiling] = tiling, i: int = i, stride: tuple = stride) -> dict:
                return tiling(target).fold(i, stride, launch.settings("masked_loss.fold", dtype, target)["BLOCK"])

            pointers = {"p_parts": "*fp32", "p_factor": "*fp64", "p_grad": "*fp32"}
            found.append(Specimen(fold, pointers, one, "masked_loss.fold", dtype, f"{label}: {levels[i]}"))
    signature = {"p_sums": "*fp32", "p_loss": number, "p_grad_bias": "*fp32", "p_factor": "*fp64", "programs": "i32"}
    constexprs = {"SQUARED": False, "GRADIENT": True}
    found.append(Specimen(total, signature, constexprs, "masked_loss.total", dtype, "all tiles", frozenset({"programs"})))
    return found
