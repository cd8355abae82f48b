"""ReLU, 1x1 convolution, BatchNorm: forward. fastdarts/ops/relu_conv_bn.py holds the definition.

The convolution's epilogue takes mean and spread of each tile about the tile's own mean; they are merged; one pass
normalises in place. With running statistics the epilogue normalises. The sums over pixels are cut into pieces that depend
on the shape alone and merged in order, so results repeat bit for bit. relu_conv_bn_backward.py has the gradients.

Letters: C input channels, HALF output channels of each of TAPS weights, D = TAPS * HALF, m output pixels; W pixels of an
input row. Memory is channels_last: number o of pixel i lies at i * D + o. Sums are float32, merged in float64.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdarts.kernels import launch, ranks
from fastdarts.kernels.compile import Specimen, pointer
from fastdarts.ops.batch_norm import Sync

# x, weights, running mean and variance (both or none)
Layer = tuple[Tensor, Sequence[Tensor], Tensor | None, Tensor | None]


@triton.jit
def input_pixel(i, tap, TAPS: tl.constexpr, W: tl.constexpr):
    """The input pixel of output pixel i: itself, or with two taps the one of its 2 x 2 pixels at (tap, tap)."""
    if TAPS == 1:
        return i
    else:
        return (2 * (i // (W // 2)) + tap) * W + 2 * (i % (W // 2)) + tap


@triton.jit
def load_weight(w0_ptr, w1_ptr, tap, offset, mask):
    """Numbers of the tap's weight."""
    if tap == 0:  # noqa: SIM108 (a branch of the program, not a choice of values)
        w = tl.load(w0_ptr + offset, mask=mask, other=0.0)
    else:
        w = tl.load(w1_ptr + offset, mask=mask, other=0.0)
    return w


@triton.jit
def load_scale(statistics_ptr, i_out, m_out, eps, D: tl.constexpr):
    """mean as a sum of two float32 numbers, and 1 / sqrt(var + eps)."""
    mean = tl.load(statistics_ptr + i_out, mask=m_out, other=0.0)
    var = tl.load(statistics_ptr + D + i_out, mask=m_out, other=1.0)
    high = mean.to(tl.float32)
    return high, (mean - high).to(tl.float32), (1.0 / tl.sqrt(var + eps)).to(tl.float32)


@triton.jit
def convolve(
    x_ptr,
    w0_ptr,
    w1_ptr,
    statistics_ptr,
    out_ptr,
    parts_ptr,
    eps,
    m,
    tiles,
    C: tl.constexpr,
    HALF: tl.constexpr,
    TAPS: tl.constexpr,
    W: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out (m, D) of `tiles` tiles a program. NORMALISE: with the statistics; else parts (programs, 2, D): mean, spread."""
    D: tl.constexpr = TAPS * HALF
    BLOCKS: tl.constexpr = (HALF + BLOCK_D - 1) // BLOCK_D
    program = tl.program_id(0)
    tap = tl.program_id(1) // BLOCKS
    i_half = tl.program_id(1) % BLOCKS * BLOCK_D + tl.arange(0, BLOCK_D)
    m_out = i_half < HALF
    i_out = tap * HALF + i_half
    count = tl.full([], 0, tl.float32)
    mean = tl.full([BLOCK_D], 0, tl.float32)
    spread = tl.full([BLOCK_D], 0, tl.float32)
    high, low, r = mean, mean, mean
    if NORMALISE:
        high, low, r = load_scale(statistics_ptr, i_out, m_out, eps, D)
    for tile in range(program * tiles, tl.minimum(program * tiles + tiles, tl.cdiv(m, BLOCK_M))):
        i_pixel = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        m_pixel = i_pixel < m
        p_x = x_ptr + input_pixel(i_pixel, tap, TAPS, W)[:, None] * C
        y = tl.full([BLOCK_M, BLOCK_D], 0, tl.float32)
        for first in range(0, C, BLOCK_C):
            i_in = first + tl.arange(0, BLOCK_C)
            m_in = i_in < C
            x = tl.load(p_x + i_in[None, :], mask=m_pixel[:, None] & m_in[None, :], other=0.0)
            w_mask = m_in[:, None] & m_out[None, :]
            w = load_weight(w0_ptr, w1_ptr, tap, i_half[None, :] * C + i_in[:, None], w_mask)
            y = tl.dot(tl.where(x < 0, tl.zeros_like(x), x), w, y, input_precision="ieee")
        if NORMALISE:
            y = ((y - high[None, :]) - low[None, :]) * r[None, :]
        rounded = y.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + i_pixel[:, None] * D + i_out[None, :], rounded, mask=m_pixel[:, None] & m_out[None, :])
        if not NORMALISE:  # what is in memory is what will be normalised
            y = rounded.to(tl.float32)
            here = tl.minimum(m - tile * BLOCK_M, BLOCK_M).to(tl.float32)
            tile_mean = tl.sum(tl.where(m_pixel[:, None], y, 0.0), 0) / here
            away = tl.where(m_pixel[:, None], y - tile_mean[None, :], 0.0)
            apart = tile_mean - mean
            share = here / (count + here)
            spread += tl.sum(away * away, 0) + apart * apart * (count * share)
            mean += apart * share
            count += here
    if not NORMALISE:
        p_part = parts_ptr + program.to(tl.int64) * (2 * D) + i_out
        tl.store(p_part, mean, mask=m_out)
        tl.store(p_part + D, spread, mask=m_out)


@triton.jit
def merge(parts_ptr, statistics_ptr, m, rows, programs, D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr):
    """statistics (2, D) float64: mean and biased variance, of parts over `rows` pixels each (the last over what is left)."""
    i_out = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_out = i_out < D
    sums = tl.full([BLOCK_P, BLOCK_D], 0, tl.float64)
    for first in range(0, programs, BLOCK_P):
        i_part = first + tl.arange(0, BLOCK_P)
        mask = (i_part < programs)[:, None] & m_out[None, :]
        count = tl.minimum(m - i_part * rows, rows).to(tl.float64)
        p_part = parts_ptr + i_part[:, None] * (2 * D) + i_out[None, :]
        sums += tl.where(mask, count[:, None] * tl.load(p_part, mask=mask, other=0.0), 0.0)
    mean = tl.sum(sums, 0) / m
    sums = tl.full([BLOCK_P, BLOCK_D], 0, tl.float64)
    for first in range(0, programs, BLOCK_P):
        i_part = first + tl.arange(0, BLOCK_P)
        mask = (i_part < programs)[:, None] & m_out[None, :]
        count = tl.minimum(m - i_part * rows, rows).to(tl.float64)
        p_part = parts_ptr + i_part[:, None] * (2 * D) + i_out[None, :]
        apart = tl.load(p_part, mask=mask, other=0.0) - mean[None, :]
        spread = tl.load(p_part + D, mask=mask, other=0.0)
        sums += tl.where(mask, spread + count[:, None] * (apart * apart), 0.0)
    tl.store(statistics_ptr + i_out, mean, mask=m_out)
    tl.store(statistics_ptr + D + i_out, tl.sum(sums, 0) / m, mask=m_out)


@triton.jit
def normalise(out_ptr, statistics_ptr, eps, m, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """out = (out - mean) / sqrt(var + eps), in place."""
    i_pixel = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    i_out = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_out = i_out < D
    mask = (i_pixel < m)[:, None] & m_out[None, :]
    high, low, r = load_scale(statistics_ptr, i_out, m_out, eps, D)
    p_out = out_ptr + i_pixel[:, None] * D + i_out[None, :]
    y = tl.load(p_out, mask=mask, other=0.0).to(tl.float32)
    tl.store(p_out, (((y - high[None, :]) - low[None, :]) * r[None, :]).to(out_ptr.dtype.element_ty), mask=mask)


def sizes(x: Tensor, weights: Sequence[Tensor]) -> tuple[int, dict[str, int]]:
    """m, and the constexprs that describe the op: C, HALF, TAPS, W."""
    (N, C, H, W), taps = x.shape, len(weights)
    return N * (H // taps) * (W // taps), {"C": C, "HALF": weights[0].shape[0], "TAPS": taps, "W": W}


def blocks(given: dict[str, Any], **extents: int) -> dict[str, Any]:
    """The launch settings with blocks no larger than their extents ask for, and no smaller than a product takes (16)."""
    cut = {name: max(16, min(given[name], triton.next_power_of_2(extent))) for name, extent in extents.items()}
    return {name: value for name, value in given.items() if name != "PROGRAMS"} | cut


def split(m: int, block: int, most: int) -> tuple[int, int]:
    """(programs, tiles of each) for m pixels in tiles of `block`: at most `most` programs."""
    tiles = triton.cdiv(triton.cdiv(m, block), most)
    return triton.cdiv(triton.cdiv(m, block), tiles), tiles


def forward(
    x: Tensor,
    weights: Sequence[Tensor],
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    sync: Sync | None = None,
) -> tuple[Tensor, Tensor]:
    """out and statistics of the registered op; three launches, or one where the running statistics are given.

    sync  batch statistics are those of all its ranks, which have as many images each
    """
    return forwards([(x, weights, running_mean, running_var)], eps, sync)[0]


def forwards(layers: Sequence[Layer], eps: float, sync: Sync | None = None) -> list[tuple[Tensor, Tensor]]:
    """`forward` of layers that are ready together: the ranks sum once for all. All or none have running statistics."""
    done = [_convolved(*layer, eps) for layer in layers]
    if layers[0][2] is not None:
        return done
    if sync is not None:
        shared = ranks.statistics(torch.cat([statistics for _, statistics in done], 1), sync)
        parts = shared.split([statistics.shape[1] for _, statistics in done], 1)
        done = [(out, part.contiguous()) for (out, _), part in zip(done, parts, strict=True)]
    for out, statistics in done:
        _normalise(out, statistics, eps)
    return done


def _convolved(
    x: Tensor, weights: Sequence[Tensor], running_mean: Tensor | None, running_var: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The convolution and its own statistics, or, normalised with them, the running ones."""
    x = x.contiguous(memory_format=torch.channels_last)
    w0, w1 = (w.contiguous() for w in (weights[0], weights[-1]))
    m, shape = sizes(x, weights)
    N, D, taps = x.shape[0], shape["TAPS"] * shape["HALF"], shape["TAPS"]
    out = x.new_empty(N, x.shape[2] // taps, x.shape[3] // taps, D).permute(0, 3, 1, 2)
    constant = running_mean is not None
    statistics = torch.stack((running_mean, running_var)).double() if constant else x.new_empty(2, D, dtype=torch.float64)
    target = launch.target_of(x.device)
    convolved, merged = (launch.settings(f"relu_conv_bn.{kernel}", x.dtype, target) for kernel in ("convolve", "merge"))
    most = convolved["PROGRAMS"]
    convolved = blocks(convolved, BLOCK_M=m, BLOCK_D=shape["HALF"], BLOCK_C=shape["C"])
    programs, tiles = split(m, convolved["BLOCK_M"], most)
    parts = x.new_empty(0 if constant else programs, 2, D, dtype=torch.float32)
    with launch.on(x.device):
        grid = (programs, taps * triton.cdiv(shape["HALF"], convolved["BLOCK_D"]))
        convolve[grid](x, w0, w1, statistics, out, parts, eps, m, tiles, NORMALISE=constant, **shape, **convolved)
        if not constant:
            merged, rows = blocks(merged, BLOCK_D=D, BLOCK_P=programs), tiles * convolved["BLOCK_M"]
            merge[(triton.cdiv(D, merged["BLOCK_D"]),)](parts, statistics, m, rows, programs, D=D, **merged)
    return out, statistics


def _normalise(out: Tensor, statistics: Tensor, eps: float) -> None:
    """In place."""
    D = out.shape[1]
    m = out.numel() // D
    given = blocks(launch.settings("relu_conv_bn.normalise", out.dtype, launch.target_of(out.device)), BLOCK_D=D, BLOCK_M=m)
    with launch.on(out.device):
        grid = (triton.cdiv(m, given["BLOCK_M"]), triton.cdiv(D, given["BLOCK_D"]))
        normalise[grid](out, statistics, eps, m, D=D, **given)


SHAPES = {  # C, HALF, TAPS, W
    "64 -> 16": (64, 16, 1, 32),
    "256 -> 64": (256, 64, 1, 8),
    "256 -> 2 x 32, halved": (256, 32, 2, 16),
}
COUNTS = {"eps": "fp32", "m": "i32", "tiles": "i32", "rows": "i32", "programs": "i32"}


def specimen(
    kernel: Any, settings: str, dtype: torch.dtype, label: str, constexprs: dict[str, Any], **extents: int
) -> Specimen:
    """With pointers to `dtype`, but for what is summed; blocks as a launch of these extents has them."""
    summed = {"statistics_ptr": "*fp64", "parts_ptr": "*fp32", "factor_ptr": "*fp32"}
    names = [name for name in kernel.arg_names if name.endswith("_ptr")]
    signature = {name: summed.get(name, pointer(dtype)) for name in names} | COUNTS

    def whole(target: str) -> dict[str, Any]:
        given = blocks(launch.settings(settings, dtype, target), **extents)
        return constexprs | {name: given[name] for name in extents}

    return Specimen(kernel, signature, whole, settings, dtype, label, frozenset(COUNTS))


def specimens(dtype: torch.dtype) -> list[Specimen]:
    """The forward kernels of CIFAR's and ImageNet's preprocess layers."""
    found = []
    for label, shape in SHAPES.items():
        given = dict(zip(("C", "HALF", "TAPS", "W"), shape, strict=True))
        C, half, taps, _ = shape
        D = half * taps
        for constant in (False, True):
            extents = {"BLOCK_M": 2**16, "BLOCK_D": half, "BLOCK_C": C}
            name = f"{label}, {'running' if constant else 'batch'} statistics"
            found.append(specimen(convolve, "relu_conv_bn.convolve", dtype, name, given | {"NORMALISE": constant}, **extents))
        found.append(specimen(merge, "relu_conv_bn.merge", dtype, label, {"D": D}, BLOCK_D=D, BLOCK_P=1024))
        found.append(specimen(normalise, "relu_conv_bn.normalise", dtype, label, {"D": D}, BLOCK_D=D, BLOCK_M=2**16))
    return found
