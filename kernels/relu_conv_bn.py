"""ReLU, 1x1 convolution, BatchNorm: forward. fastdarts/ops/relu_conv_bn.py holds the definition.

The convolution's epilogue computes mean and spread of each tile about the tile's own mean; these are merged; one pass
normalises in place. With running statistics the epilogue normalises. With affine parameters, what was normalised stays for
the backward and the output is a second tensor. Sums over pixels are split by the shape alone and merged
in order, so results repeat bit for bit. relu_conv_bn_backward.py has the gradients.

Notation (prefixes as in mixed_cell_parts.py): C input channels, HALF output channels of each of TAPS weights, D = TAPS * HALF,
m output pixels; W pixels of an input row. Memory is channels_last: number o of pixel i is at i * D + o. Sums are float32,
merged in float64.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdarts.kernels import launch, ranks
from fastdarts.kernels.compile import Specimen, pointer
from fastdarts.kernels.ranks import Sync


class Layer(NamedTuple):
    """A layer's tensors. Both or none of: running mean and variance, scale and shift."""

    x: Tensor
    weights: Sequence[Tensor]
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None


class Normalised(NamedTuple):
    """A layer's results: the registered op's."""

    out: Tensor
    statistics: Tensor
    normalised: Tensor  # without affine parameters the output


@triton.jit
def input_pixel(i_out, tap, TAPS: tl.constexpr, W: tl.constexpr):
    """Return the input pixel of output pixel i: itself, or with two taps the one of its 2 x 2 pixels at (tap, tap)."""
    return i_out if TAPS == 1 else (2 * (i_out // (W // 2)) + tap) * W + 2 * (i_out % (W // 2)) + tap


@triton.jit
def load_weight(p_w0, p_w1, tap, i_weight, m_block):
    """Load numbers of the tap's weight."""
    if tap == 0:  # noqa: SIM108 (a branch of the program, not a choice of values)
        b_w = tl.load(p_w0 + i_weight, mask=m_block, other=0.0)
    else:
        b_w = tl.load(p_w1 + i_weight, mask=m_block, other=0.0)
    return b_w


@triton.jit
def load_scale(p_statistics, i_out, m_out, eps, D: tl.constexpr):
    """Load mean as a sum of two float32 numbers, and 1 / sqrt(var + eps)."""
    b_mean = tl.load(p_statistics + i_out, mask=m_out, other=0.0)
    b_var = tl.load(p_statistics + D + i_out, mask=m_out, other=1.0)
    b_high = b_mean.to(tl.float32)
    return b_high, (b_mean - b_high).to(tl.float32), (1.0 / tl.sqrt(b_var + eps)).to(tl.float32)


@triton.jit
def store_affine(p_out, p_scale, p_shift, i_number, m_number, i_out, m_out, b_xhat):
    """Store xhat * scale + shift at (pixels, outputs)."""
    b_scale = tl.load(p_scale + i_out, mask=m_out, other=0.0).to(tl.float32)
    b_shift = tl.load(p_shift + i_out, mask=m_out, other=0.0).to(tl.float32)
    b_out = b_xhat * b_scale[None, :] + b_shift[None, :]
    tl.store(p_out + i_number, b_out.to(p_out.dtype.element_ty), mask=m_number)


@triton.jit
def convolve(
    p_x, p_w0, p_w1, p_statistics, p_scale, p_shift, p_normalised, p_out, p_parts,
    eps, m, tiles,
    C: tl.constexpr, HALF: tl.constexpr, TAPS: tl.constexpr, W: tl.constexpr, NORMALISE: tl.constexpr, AFFINE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute `tiles` tiles a program of normalised (m, D), with NORMALISE: by the statistics, then, if AFFINE, also out.

    Else the convolution alone, in the same place, and parts (programs, 2, D): mean, spread.
    """
    D: tl.constexpr = TAPS * HALF
    BLOCKS: tl.constexpr = (HALF + BLOCK_D - 1) // BLOCK_D
    program = tl.program_id(0)
    tap = tl.program_id(1) // BLOCKS
    i_half = tl.program_id(1) % BLOCKS * BLOCK_D + tl.arange(0, BLOCK_D)
    m_out = i_half < HALF
    i_out = tap * HALF + i_half
    count = tl.full([], 0, tl.float32)
    b_mean = tl.full([BLOCK_D], 0, tl.float32)
    b_spread = tl.full([BLOCK_D], 0, tl.float32)
    b_high, b_low, b_r = b_mean, b_mean, b_mean
    if NORMALISE:
        b_high, b_low, b_r = load_scale(p_statistics, i_out, m_out, eps, D)
    for tile in range(program * tiles, tl.minimum(program * tiles + tiles, tl.cdiv(m, BLOCK_M))):
        i_pixel = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        m_pixel = i_pixel < m
        p_pixel = p_x + input_pixel(i_pixel, tap, TAPS, W)[:, None] * C
        b_y = tl.full([BLOCK_M, BLOCK_D], 0, tl.float32)
        for first in range(0, C, BLOCK_C):
            i_in = first + tl.arange(0, BLOCK_C)
            m_in = i_in < C
            b_x = tl.load(p_pixel + i_in[None, :], mask=m_pixel[:, None] & m_in[None, :], other=0.0)
            m_weight = m_in[:, None] & m_out[None, :]
            b_w = load_weight(p_w0, p_w1, tap, i_half[None, :] * C + i_in[:, None], m_weight)
            b_y = tl.dot(tl.where(b_x < 0, tl.zeros_like(b_x), b_x), b_w, b_y, input_precision="ieee")
        if NORMALISE:
            b_y = ((b_y - b_high[None, :]) - b_low[None, :]) * b_r[None, :]
        b_rounded = b_y.to(p_normalised.dtype.element_ty)
        tl.store(p_normalised + i_pixel[:, None] * D + i_out[None, :], b_rounded, mask=m_pixel[:, None] & m_out[None, :])
        if NORMALISE and AFFINE:
            i_number, m_number = i_pixel[:, None] * D + i_out[None, :], m_pixel[:, None] & m_out[None, :]
            store_affine(p_out, p_scale, p_shift, i_number, m_number, i_out, m_out, b_y)
        if not NORMALISE:  # statistics of the stored, rounded values, which are the ones normalised
            b_y = b_rounded.to(tl.float32)
            here = tl.minimum(m - tile * BLOCK_M, BLOCK_M).to(tl.float32)
            b_tile_mean = tl.sum(tl.where(m_pixel[:, None], b_y, 0.0), 0) / here
            b_away = tl.where(m_pixel[:, None], b_y - b_tile_mean[None, :], 0.0)
            b_apart = b_tile_mean - b_mean
            share = here / (count + here)
            b_spread += tl.sum(b_away * b_away, 0) + b_apart * b_apart * (count * share)
            b_mean += b_apart * share
            count += here
    if not NORMALISE:
        p_part = p_parts + program.to(tl.int64) * (2 * D) + i_out
        tl.store(p_part, b_mean, mask=m_out)
        tl.store(p_part + D, b_spread, mask=m_out)


@triton.jit
def merge(p_parts, p_statistics, m, rows, programs, D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr):
    """Compute statistics (2, D) float64: mean and biased variance, from parts over `rows` pixels each (fewer in the last)."""
    i_out = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_out = i_out < D
    b_sums = tl.full([BLOCK_P, BLOCK_D], 0, tl.float64)
    for first in range(0, programs, BLOCK_P):
        i_part = first + tl.arange(0, BLOCK_P)
        m_block = (i_part < programs)[:, None] & m_out[None, :]
        b_count = tl.minimum(m - i_part * rows, rows).to(tl.float64)
        p_part = p_parts + i_part[:, None] * (2 * D) + i_out[None, :]
        b_sums += tl.where(m_block, b_count[:, None] * tl.load(p_part, mask=m_block, other=0.0), 0.0)
    b_mean = tl.sum(b_sums, 0) / m
    b_sums = tl.full([BLOCK_P, BLOCK_D], 0, tl.float64)
    for first in range(0, programs, BLOCK_P):
        i_part = first + tl.arange(0, BLOCK_P)
        m_block = (i_part < programs)[:, None] & m_out[None, :]
        b_count = tl.minimum(m - i_part * rows, rows).to(tl.float64)
        p_part = p_parts + i_part[:, None] * (2 * D) + i_out[None, :]
        b_apart = tl.load(p_part, mask=m_block, other=0.0) - b_mean[None, :]
        b_spread = tl.load(p_part + D, mask=m_block, other=0.0)
        b_sums += tl.where(m_block, b_spread + b_count[:, None] * (b_apart * b_apart), 0.0)
    tl.store(p_statistics + i_out, b_mean, mask=m_out)
    tl.store(p_statistics + D + i_out, tl.sum(b_sums, 0) / m, mask=m_out)


@triton.jit
def normalise(
    p_normalised, p_statistics, p_scale, p_shift, p_out,
    eps, m,
    D: tl.constexpr, AFFINE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute normalised = (normalised - mean) / sqrt(var + eps), in place; also out, if AFFINE."""
    i_pixel = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    i_out = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_out = i_out < D
    m_block = (i_pixel < m)[:, None] & m_out[None, :]
    b_high, b_low, b_r = load_scale(p_statistics, i_out, m_out, eps, D)
    i_number = i_pixel[:, None] * D + i_out[None, :]
    b_y = tl.load(p_normalised + i_number, mask=m_block, other=0.0).to(tl.float32)
    b_xhat = ((b_y - b_high[None, :]) - b_low[None, :]) * b_r[None, :]
    tl.store(p_normalised + i_number, b_xhat.to(p_normalised.dtype.element_ty), mask=m_block)
    if AFFINE:
        store_affine(p_out, p_scale, p_shift, i_number, m_block, i_out, m_out, b_xhat)


def sizes(x: Tensor, weights: Sequence[Tensor]) -> tuple[int, dict[str, int]]:
    """Return m, and the constexprs that describe the op: C, HALF, TAPS, W."""
    (N, C, H, W), taps = x.shape, len(weights)
    return N * (H // taps) * (W // taps), {"C": C, "HALF": weights[0].shape[0], "TAPS": taps, "W": W}


def blocks(settings: dict[str, Any], **extents: int) -> dict[str, Any]:
    """Return the launch settings with blocks limited to their extents, but at least 16, the minimum of a matrix product."""
    cut = {name: max(16, min(settings[name], triton.next_power_of_2(extent))) for name, extent in extents.items()}
    return {name: value for name, value in settings.items() if name != "PROGRAMS"} | cut


def split(m: int, block: int, most: int) -> tuple[int, int]:
    """Return (programs, tiles of each) for m pixels in tiles of `block`: at most `most` programs."""
    tiles = triton.cdiv(triton.cdiv(m, block), most)
    return triton.cdiv(triton.cdiv(m, block), tiles), tiles


def forward(layer: Layer, eps: float, sync: Sync | None = None) -> Normalised:
    """Return the results of the registered op; three launches, or one with running statistics.

    sync  batch statistics are those of all its ranks, which have as many images each
    """
    return forwards([layer], eps, sync)[0]


def forwards(layers: Sequence[Layer], eps: float, sync: Sync | None = None) -> list[Normalised]:
    """Run `forward` of layers that are ready together, with one sum over the ranks. All or none have running statistics."""
    done = [_convolved(layer, eps) for layer in layers]
    if layers[0].running_mean is not None:
        return done
    if sync is not None:
        shared = ranks.statistics(torch.cat([one.statistics for one in done], 1), sync)
        parts = shared.split([one.statistics.shape[1] for one in done], 1)
        done = [one._replace(statistics=part.contiguous()) for one, part in zip(done, parts, strict=True)]
    for layer, one in zip(layers, done, strict=True):
        _normalise(layer, one, eps)
    return done


def _affine(layer: Layer) -> tuple[Tensor, Tensor]:
    """Return scale and shift; without, tensors that are never read."""
    return (layer.x, layer.x) if layer.scale is None or layer.shift is None else (layer.scale, layer.shift)


def _convolved(layer: Layer, eps: float) -> Normalised:
    """Return the convolution and its statistics, or, with running statistics, the final results."""
    x = layer.x.contiguous(memory_format=torch.channels_last)
    w0, w1 = (w.contiguous() for w in (layer.weights[0], layer.weights[-1]))
    m, shape = sizes(x, layer.weights)
    N, D, taps = x.shape[0], shape["TAPS"] * shape["HALF"], shape["TAPS"]
    normalised = x.new_empty(N, x.shape[2] // taps, x.shape[3] // taps, D).permute(0, 3, 1, 2)
    out = normalised if layer.scale is None else torch.empty_like(normalised)
    constant = layer.running_mean is not None and layer.running_var is not None
    if constant:
        statistics = torch.stack((layer.running_mean, layer.running_var)).double()
    else:
        statistics = x.new_empty(2, D, dtype=torch.float64)
    target = launch.target_of(x.device)
    convolved, merged = (launch.settings(f"relu_conv_bn.{kernel}", x.dtype, target) for kernel in ("convolve", "merge"))
    most = convolved["PROGRAMS"]
    convolved = blocks(convolved, BLOCK_M=m, BLOCK_D=shape["HALF"], BLOCK_C=shape["C"])
    programs, tiles = split(m, convolved["BLOCK_M"], most)
    parts = x.new_empty(0 if constant else programs, 2, D, dtype=torch.float32)
    flags = {"NORMALISE": constant, "AFFINE": constant and layer.scale is not None}
    with launch.on(x.device):
        grid = (programs, taps * triton.cdiv(shape["HALF"], convolved["BLOCK_D"]))
        given = x, w0, w1, statistics, *_affine(layer), normalised, out, parts
        convolve[grid](*given, eps, m, tiles, **flags, **shape, **convolved)
        if not constant:
            merged, rows = blocks(merged, BLOCK_D=D, BLOCK_P=programs), tiles * convolved["BLOCK_M"]
            merge[(triton.cdiv(D, merged["BLOCK_D"]),)](parts, statistics, m, rows, programs, D=D, **merged)
    return Normalised(out, statistics, normalised)


def _normalise(layer: Layer, one: Normalised, eps: float) -> None:
    """Normalise in place, and compute the output with affine parameters."""
    D = one.out.shape[1]
    m = one.out.numel() // D
    settings = launch.settings("relu_conv_bn.normalise", one.out.dtype, launch.target_of(one.out.device))
    settings = blocks(settings, BLOCK_D=D, BLOCK_M=m)
    with launch.on(one.out.device):
        grid = (triton.cdiv(m, settings["BLOCK_M"]), triton.cdiv(D, settings["BLOCK_D"]))
        given = one.normalised, one.statistics, *_affine(layer), one.out
        normalise[grid](*given, eps, m, D=D, AFFINE=layer.scale is not None, **settings)


SHAPES = {  # C, HALF, TAPS, W
    "64 -> 16": (64, 16, 1, 32),
    "256 -> 64": (256, 64, 1, 8),
    "256 -> 2 x 32, halved": (256, 32, 2, 16),
}
COUNTS = {"eps": "fp32", "m": "i32", "tiles": "i32", "rows": "i32", "programs": "i32"}


def specimen(
    kernel: Any, settings: str, dtype: torch.dtype, label: str, constexprs: dict[str, Any], **extents: int
) -> Specimen:
    """Return a specimen with pointers to `dtype`, except for sums; blocks as in a launch of these extents."""
    summed = {"p_statistics": "*fp64", "p_parts": "*fp32", "p_factor": "*fp32"}
    names = [name for name in kernel.arg_names if name.startswith("p_")]
    signature = {name: summed.get(name, pointer(dtype)) for name in names} | COUNTS

    def whole(target: str) -> dict[str, Any]:
        limited = blocks(launch.settings(settings, dtype, target), **extents)
        return constexprs | {name: limited[name] for name in extents}

    return Specimen(kernel, signature, whole, settings, dtype, label, frozenset(COUNTS))


def specimens(dtype: torch.dtype) -> list[Specimen]:
    """Return the forward kernels of CIFAR's and ImageNet's preprocess layers; with affine parameters those that differ."""
    found = []
    for label, shape in SHAPES.items():
        constants = dict(zip(("C", "HALF", "TAPS", "W"), shape, strict=True))
        C, half, taps, _ = shape
        D = half * taps
        sized = {"BLOCK_M": 2**16, "BLOCK_D": half, "BLOCK_C": C}
        for running, affine in ((False, False), (True, False), (True, True)):
            name = f"{label}, {'running' if running else 'batch'} statistics{', affine' if affine else ''}"
            flags = constants | {"NORMALISE": running, "AFFINE": affine}
            found.append(specimen(convolve, "relu_conv_bn.convolve", dtype, name, flags, **sized))
        found.append(specimen(merge, "relu_conv_bn.merge", dtype, label, {"D": D}, BLOCK_D=D, BLOCK_P=1024))
        for affine, name in ((False, label), (True, f"{label}, affine")):
            flags = {"D": D, "AFFINE": affine}
            found.append(specimen(normalise, "relu_conv_bn.normalise", dtype, name, flags, BLOCK_D=D, BLOCK_M=2**16))
    return found
