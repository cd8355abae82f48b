"""ReLU, 1x1 convolution, BatchNorm: gradients. fastdarts/ops/relu_conv_bn.py holds the definition.

BatchNorm's two sums first, which are also the gradients of affine parameters; then the gradient of x and that of the weights,
both from dy = a g + q xhat + c, computed in registers. Sums over pixels are split by the shape alone and added in order, in
float64.

Notation as in relu_conv_bn.py.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdarts.kernels import launch, ranks
from fastdarts.kernels.compile import Specimen
from fastdarts.kernels.ranks import Sync
from fastdarts.kernels.relu_conv_bn import SHAPES, blocks, input_pixel, load_weight, sizes, specimen, split


class Layer(NamedTuple):
    """A layer's tensors of the forward, and the gradient of its output."""

    grad: Tensor
    x: Tensor
    weights: Sequence[Tensor]
    normalised: Tensor
    statistics: Tensor
    scale: Tensor | None = None


class Gradients(NamedTuple):
    """A layer's gradients: an empty tensor or list if not needed."""

    x: Tensor
    weights: list[Tensor]
    affine: list[Tensor]  # of scale and shift


@triton.jit
def load_dy(p_g, p_xhat, p_factor, i_number, i_out, m_out, m_number, D: tl.constexpr):
    """Compute dL/dy = a g + q xhat + c at (pixels, outputs), zero where m_number is False."""
    b_a = tl.load(p_factor + i_out, mask=m_out, other=0.0)
    b_q = tl.load(p_factor + D + i_out, mask=m_out, other=0.0)
    b_c = tl.load(p_factor + 2 * D + i_out, mask=m_out, other=0.0)
    b_g = tl.load(p_g + i_number, mask=m_number, other=0.0).to(tl.float32)
    b_xhat = tl.load(p_xhat + i_number, mask=m_number, other=0.0).to(tl.float32)
    return tl.where(m_number, b_a[None, :] * b_g + (b_q[None, :] * b_xhat + b_c[None, :]), 0.0)


@triton.jit
def grad_sums(p_g, p_xhat, p_parts, m, tiles, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """Compute parts (programs, 2, D): sums of g and of g * xhat over `tiles` tiles of pixels."""
    program = tl.program_id(0)
    i_out = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_out = i_out < D
    b_s0 = tl.full([BLOCK_D], 0, tl.float32)
    b_s1 = tl.full([BLOCK_D], 0, tl.float32)
    for tile in range(program * tiles, tl.minimum(program * tiles + tiles, tl.cdiv(m, BLOCK_M))):
        i_pixel = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        i_number = i_pixel[:, None] * D + i_out[None, :]
        m_block = (i_pixel < m)[:, None] & m_out[None, :]
        b_g = tl.load(p_g + i_number, mask=m_block, other=0.0).to(tl.float32)
        b_xhat = tl.load(p_xhat + i_number, mask=m_block, other=0.0).to(tl.float32)
        b_s0 += tl.sum(b_g, 0)
        b_s1 += tl.sum(b_g * b_xhat, 0)
    p_part = p_parts + program.to(tl.int64) * (2 * D) + i_out
    tl.store(p_part, b_s0, mask=m_out)
    tl.store(p_part + D, b_s1, mask=m_out)


@triton.jit
def bn_backward_coefficients(
    p_parts, p_statistics, p_scale, p_factor, p_grad_scale, p_grad_shift,
    eps, m, programs,
    D: tl.constexpr, BATCH: tl.constexpr, AFFINE: tl.constexpr, LEARNT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute factor (3, D): a, q, c of dy, of which AFFINE scales all, and, if LEARNT, the gradients of scale and shift.

    Without BATCH, the statistics are constants, and q and c are zero. Without programs there are no sums.
    """
    i_out = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_out = i_out < D
    b_s0 = tl.full([BLOCK_P, BLOCK_D], 0, tl.float64)
    b_s1 = tl.full([BLOCK_P, BLOCK_D], 0, tl.float64)
    for first in range(0, programs, BLOCK_P):
        i_part = first + tl.arange(0, BLOCK_P)
        m_block = (i_part < programs)[:, None] & m_out[None, :]
        p_part = p_parts + i_part[:, None] * (2 * D) + i_out[None, :]
        b_s0 += tl.load(p_part, mask=m_block, other=0.0)
        b_s1 += tl.load(p_part + D, mask=m_block, other=0.0)
    b_r = 1.0 / tl.sqrt(tl.load(p_statistics + D + i_out, mask=m_out, other=1.0) + eps)
    b_of_shift, b_of_scale = tl.sum(b_s0, 0), tl.sum(b_s1, 0)
    if LEARNT:
        tl.store(p_grad_scale + i_out, b_of_scale.to(tl.float32).to(p_grad_scale.dtype.element_ty), mask=m_out)
        tl.store(p_grad_shift + i_out, b_of_shift.to(tl.float32).to(p_grad_shift.dtype.element_ty), mask=m_out)
    if AFFINE:
        b_r *= tl.load(p_scale + i_out, mask=m_out, other=0.0)
    if not BATCH:
        b_of_shift, b_of_scale = b_of_shift * 0.0, b_of_scale * 0.0
    tl.store(p_factor + i_out, b_r.to(tl.float32), mask=m_out)
    tl.store(p_factor + D + i_out, (-b_r * b_of_scale / m).to(tl.float32), mask=m_out)
    tl.store(p_factor + 2 * D + i_out, (-b_r * b_of_shift / m).to(tl.float32), mask=m_out)


@triton.jit
def gradient_x(
    p_g, p_xhat, p_x, p_w0, p_w1, p_factor, p_grad,
    m,
    C: tl.constexpr, HALF: tl.constexpr, TAPS: tl.constexpr, W: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of x: dx where the ReLU passed; with two taps also the zeros of pixels that no tap reads."""
    D: tl.constexpr = TAPS * HALF
    BLOCKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tap = tl.program_id(1) // BLOCKS
    i_in = tl.program_id(1) % BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
    m_in = i_in < C
    i_pixel = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_pixel = i_pixel < m
    b_dx = tl.full([BLOCK_M, BLOCK_C], 0, tl.float32)
    for first in range(0, HALF, BLOCK_D):
        i_half = first + tl.arange(0, BLOCK_D)
        m_out = i_half < HALF
        i_out = tap * HALF + i_half
        i_number = i_pixel[:, None] * D + i_out[None, :]
        b_dy = load_dy(p_g, p_xhat, p_factor, i_number, i_out, m_out, m_pixel[:, None] & m_out[None, :], D)
        b_w = load_weight(p_w0, p_w1, tap, i_half[:, None] * C + i_in[None, :], m_out[:, None] & m_in[None, :])
        b_dx = tl.dot(b_dy.to(b_w.dtype), b_w, b_dx, input_precision="ieee")
    i_source = input_pixel(i_pixel, tap, TAPS, W)
    m_block = m_pixel[:, None] & m_in[None, :]
    i_number = i_source[:, None] * C + i_in[None, :]
    b_x = tl.load(p_x + i_number, mask=m_block, other=0.0)
    b_dx = tl.where(b_x > 0, b_dx, 0.0).to(p_grad.dtype.element_ty)
    tl.store(p_grad + i_number, b_dx, mask=m_block)
    if TAPS == 2:
        tl.store(p_grad + i_number + (1 - 2 * tap) * C, tl.zeros_like(b_dx), mask=m_block)


@triton.jit
def gradient_weights(
    p_g, p_xhat, p_x, p_factor, p_parts,
    m, tiles,
    C: tl.constexpr, HALF: tl.constexpr, TAPS: tl.constexpr, W: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute parts (programs, D, C): the weights' gradient over `tiles` tiles of pixels."""
    D: tl.constexpr = TAPS * HALF
    BLOCKS: tl.constexpr = (HALF + BLOCK_D - 1) // BLOCK_D
    program = tl.program_id(0)
    tap = tl.program_id(1) // BLOCKS
    i_half = tl.program_id(1) % BLOCKS * BLOCK_D + tl.arange(0, BLOCK_D)
    i_in = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_out, m_in = i_half < HALF, i_in < C
    i_out = tap * HALF + i_half
    b_grad = tl.full([BLOCK_D, BLOCK_C], 0, tl.float32)
    for tile in range(program * tiles, tl.minimum(program * tiles + tiles, tl.cdiv(m, BLOCK_M))):
        i_pixel = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        m_pixel = i_pixel < m
        i_number = i_pixel[:, None] * D + i_out[None, :]
        b_dy = load_dy(p_g, p_xhat, p_factor, i_number, i_out, m_out, m_pixel[:, None] & m_out[None, :], D)
        p_pixel = p_x + input_pixel(i_pixel, tap, TAPS, W)[:, None] * C + i_in[None, :]
        b_x = tl.load(p_pixel, mask=m_pixel[:, None] & m_in[None, :], other=0.0)
        b_x = tl.where(b_x < 0, tl.zeros_like(b_x), b_x)
        b_grad = tl.dot(tl.trans(b_dy.to(b_x.dtype)), b_x, b_grad, input_precision="ieee")
    p_part = p_parts + program.to(tl.int64) * (D * C) + i_out[:, None] * C + i_in[None, :]
    tl.store(p_part, b_grad, mask=m_out[:, None] & m_in[None, :])


@triton.jit
def reduce_parts(p_parts, p_grad0, p_grad1, programs, NUMBERS: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr):
    """Sum the parts (programs, NUMBERS): the first half to grad0, the second to grad1."""
    i_number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_total = tl.full([BLOCK], 0, tl.float64)
    p_part = p_parts + i_number
    for _ in range(programs):
        b_total += tl.load(p_part, mask=i_number < NUMBERS, other=0.0)
        p_part += NUMBERS
    ONE: tl.constexpr = NUMBERS // TAPS
    b_grad = b_total.to(tl.float32).to(p_grad0.dtype.element_ty)
    tl.store(p_grad0 + i_number, b_grad, mask=i_number < ONE)
    tl.store(p_grad1 + i_number - ONE, b_grad, mask=(i_number >= ONE) & (i_number < NUMBERS))


def backward(
    layer: Layer, eps: float, batch_statistics: bool, need_x: bool, need_weights: bool, sync: Sync | None = None
) -> Gradients:
    """Return the gradients of the registered op; at most five launches. sync: the forward's."""
    return backwards([layer], eps, batch_statistics, [need_x], need_weights, sync)[0]


def backwards(
    layers: Sequence[Layer],
    eps: float,
    batch_statistics: bool,
    need_xs: Sequence[bool],
    need_weights: bool,
    sync: Sync | None = None,
) -> list[Gradients]:
    """Run `backward` of the layers of one forward, with one sum over the ranks.

    need_weights  and scales and shifts, if the layers have them: those gradients are of the rank's images
    """
    layers = [_laid_out(layer) for layer in layers]
    of_affine = [[] if one.scale is None or not need_weights else [torch.empty_like(one.scale) for _ in "ab"] for one in layers]
    factors_of = [_factors(layer, eps, batch_statistics, grads) for layer, grads in zip(layers, of_affine, strict=True)]
    if batch_statistics and sync is not None:
        shared = ranks.mean(torch.cat([factor[1:] for factor in factors_of], 1), sync)
        for factor, part in zip(factors_of, shared.split([factor.shape[1] for factor in factors_of], 1), strict=True):
            factor[1:] = part
    return [
        Gradients(*_gradients(layer, factor, need_x, need_weights), grads)
        for layer, factor, need_x, grads in zip(layers, factors_of, need_xs, of_affine, strict=True)
    ]


def _laid_out(layer: Layer) -> Layer:
    names = "grad", "x", "normalised"
    images = {name: getattr(layer, name).contiguous(memory_format=torch.channels_last) for name in names}
    return layer._replace(**images, weights=[w.contiguous() for w in layer.weights])


def _given(kernel: str, like: Tensor, **extents: int) -> tuple[dict[str, Any], int]:
    """Return launch settings, and the most programs that share the pixels."""
    row = launch.settings(f"relu_conv_bn.{kernel}", like.dtype, launch.target_of(like.device))
    return blocks(row, **extents), row.get("PROGRAMS", 1)


def _factors(layer: Layer, eps: float, batch_statistics: bool, of_affine: Sequence[Tensor]) -> Tensor:
    """Return factor (3, D) of dL/dy = a g + q xhat + c; q and c of this rank's pixels.

    of_affine  where the gradients of scale and shift go; empty: nowhere
    """
    xhat = layer.normalised
    D = xhat.shape[1]
    m = xhat.numel() // D
    factor = xhat.new_empty(3, D, dtype=torch.float32)
    summed, scale = batch_statistics or bool(of_affine), factor if layer.scale is None else layer.scale
    with launch.on(xhat.device):
        chosen, most = _given("grad_sums", xhat, BLOCK_M=m, BLOCK_D=D)
        programs, tiles = split(m, chosen["BLOCK_M"], most) if summed else (0, 0)
        parts = xhat.new_empty(programs, 2, D, dtype=torch.float32)
        if summed:
            grid = (programs, triton.cdiv(D, chosen["BLOCK_D"]))
            grad_sums[grid](layer.grad, xhat, parts, m, tiles, D=D, **chosen)
        chosen, _ = _given("bn_backward_coefficients", xhat, BLOCK_P=max(programs, 1), BLOCK_D=D)
        given = parts, layer.statistics, scale, factor, *(of_affine or (factor, factor))
        flags = {"BATCH": batch_statistics, "AFFINE": layer.scale is not None, "LEARNT": bool(of_affine)}
        bn_backward_coefficients[(triton.cdiv(D, chosen["BLOCK_D"]),)](*given, eps, m, programs, D=D, **flags, **chosen)
    return factor


def _gradients(layer: Layer, factor: Tensor, need_x: bool, need_weights: bool) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients of x and of the weights."""
    grad, x, weights, xhat = layer[:4]
    w0, w1 = weights[0], weights[-1]
    m, shape = sizes(x, weights)
    C, half, taps = shape["C"], shape["HALF"], shape["TAPS"]
    D = half * taps
    grad_x = torch.empty_like(x, memory_format=torch.channels_last) if need_x else x.new_empty(0)
    grad_weights = [w.new_empty(w.shape) for w in weights] if need_weights else []
    with launch.on(x.device):
        if need_x:
            chosen, _ = _given("gradient_x", x, BLOCK_M=m, BLOCK_D=half, BLOCK_C=C)
            grid = (triton.cdiv(m, chosen["BLOCK_M"]), taps * triton.cdiv(C, chosen["BLOCK_C"]))
            gradient_x[grid](grad, xhat, x, w0, w1, factor, grad_x, m, **shape, **chosen)
        if need_weights:
            chosen, most = _given("gradient_weights", x, BLOCK_M=m, BLOCK_D=half, BLOCK_C=C)
            programs, tiles = split(m, chosen["BLOCK_M"], most)
            parts = x.new_empty(programs, D, C, dtype=torch.float32)
            grid = (programs, taps * triton.cdiv(half, chosen["BLOCK_D"]), triton.cdiv(C, chosen["BLOCK_C"]))
            gradient_weights[grid](grad, xhat, x, factor, parts, m, tiles, **shape, **chosen)
            chosen, _ = _given("reduce_parts", x, BLOCK=D * C)
            grid = (triton.cdiv(D * C, chosen["BLOCK"]),)
            reduce_parts[grid](parts, grad_weights[0], grad_weights[-1], programs, NUMBERS=D * C, TAPS=taps, **chosen)
    return grad_x, grad_weights


def specimens(dtype: torch.dtype) -> list[Specimen]:
    """Return the backward kernels of the same layers."""
    found = []
    for label, shape in SHAPES.items():
        constants = dict(zip(("C", "HALF", "TAPS", "W"), shape, strict=True))
        C, half, taps, _ = shape
        D = half * taps
        many = 2**16
        product = {"BLOCK_M": many, "BLOCK_D": half, "BLOCK_C": C}
        coefficients = {"BLOCK_P": many, "BLOCK_D": D}
        affine = {"D": D, "BATCH": True, "AFFINE": True, "LEARNT": True}
        for kernel, name, constexprs, extents in (
            (grad_sums, label, {"D": D}, {"BLOCK_M": many, "BLOCK_D": D}),
            (bn_backward_coefficients, label, affine | {"AFFINE": False, "LEARNT": False}, coefficients),
            (bn_backward_coefficients, f"{label}, affine", affine, coefficients),
            (gradient_x, label, constants, product),
            (gradient_weights, label, constants, product),
            (reduce_parts, label, {"NUMBERS": D * C, "TAPS": taps}, {"BLOCK": D * C}),
        ):
            found.append(specimen(kernel, f"relu_conv_bn.{kernel.__name__}", dtype, name, constexprs, **extents))
    return found
