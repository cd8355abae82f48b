"""ReLU, 1x1 convolution, BatchNorm: a cell's preprocess layer, at full resolution or halving it (FactorizedReduce).

Notation: N images, C input and D output channels, H W pixels, m = N*H'*W' values of an output channel.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts.kernels.arguments import ReLUConvBN, ReLUConvBNBackward, ReLUConvBNGradients, ReLUConvBNResults
from fastdarts.ops import backend as backends
from fastdarts.ops import batch_norm
from fastdarts.ops.batch_norm import Running
from fastdarts.ops.schema import Op
from fastdarts.ops.sync import Sync, handle, ranks_of

FORWARD = Op("relu_conv_bn", ReLUConvBN, ReLUConvBNResults)
BACKWARD = Op("relu_conv_bn_backward", ReLUConvBNBackward, ReLUConvBNGradients)


Affine = tuple[Tensor, Tensor]  # scale and shift


class Constants(NamedTuple):
    """The arguments of relu_conv_bns that are not differentiable, in the definition's order."""

    running: Sequence[Running] | None  # of each layer
    training: bool
    momentum: float
    eps: float
    sync: Sync | None


def relu_conv_bn(
    x: Tensor,
    weights: Sequence[Tensor],
    running: Running | None,
    *,
    affine: Affine | None = None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    backend: str = "auto",
    sync: Sync | None = None,
) -> Tensor:
    """Compute BatchNorm of a 1x1 convolution of ReLU(x).

    x         (N, C, H, W), floating point
    weights   one (D, C, 1, 1): stride 1. Two (D/2, C, 1, 1): FactorizedReduce, each of stride 2, the second one offset by a
              pixel (odd rows and columns), concatenated; H and W even. Of x' dtype (any floating point one under autocast)
    running   None, or running mean and variance: (D,), of the weights' dtype. Updated in place, once, when training
    affine    None, or scale and shift: (D,) each
    training  True: batch statistics. False: the running ones, or, without them, batch statistics
    momentum  of the running statistics
    backend   "auto", "cpu" (C++: float32, float64), "triton" (NVIDIA GPUs: float32, bfloat16, float16) or "definition"
    sync      sums batch statistics over the ranks that share a batch; all ranks have as many images

    Returns (N, D, H, W), or (N, D, H/2, W/2); channels_last from a fused backend, which takes x in any layout. Under
    autocast everything but the running statistics has autocast's dtype; sums are float32 on a GPU whatever the dtype, and
    products of float32 are never TF32.
    Differentiable twice in x, the weights and affine. Raises ValueError for arguments that do not fit, BackendUnavailable.
    """
    layer = [x], [weights], None if running is None else [running]
    affines = None if affine is None else [affine]
    return relu_conv_bns(*layer, affines=affines, training=training, momentum=momentum, eps=eps, backend=backend, sync=sync)[0]


def relu_conv_bns(
    xs: Sequence[Tensor],
    weights: Sequence[Sequence[Tensor]],
    running: Sequence[Running] | None,
    *,
    affines: Sequence[Affine] | None = None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    backend: str = "auto",
    sync: Sync | None = None,
) -> tuple[Tensor, ...]:
    """Compute relu_conv_bn of one layer, or of two that are ready together and share one sum over the ranks.

    xs, weights, running and affines hold those of each layer. The outputs agree in N, H and W, the xs in dtype and device.
    """
    constants = Constants(running, training, momentum, eps, sync)
    _check(xs, weights, affines, constants)
    args = list(xs), [list(w) for w in weights], affines, constants
    return backends.run("relu_conv_bn", backend, xs[0].device, backends.arithmetic(xs[0]), *args)


def definition(
    x: Tensor,
    weights: Sequence[Tensor],
    running: Running | None,
    affine: Affine | None,
    training: bool,
    momentum: float,
    eps: float,
    sync: Sync | None = None,
) -> Tensor:
    """relu_conv_bn in plain PyTorch, at any dtype on any device; same arguments."""
    x = F.relu(x)
    if len(weights) == 1:
        y = F.conv2d(x, weights[0])
    else:
        y = torch.cat([halving_convolution(x, weight, offset) for offset, weight in enumerate(weights)], dim=1)
    return batch_norm.batch_norm(y, running, training, momentum, eps, sync, *(affine or ()))


def halving_convolution(x: Tensor, weight: Tensor, offset: int = 0) -> Tensor:
    """1x1 convolution of stride 2 starting at pixel (offset, offset): (N, C, H, W), (D, C, 1, 1) -> (N, D, H', W').

    On a CPU the pixels are gathered first. F.conv2d with stride=2 packs them in oneDNN's AVX2 kernel of the weight gradient
    (seen in 3.13.3, of torch 2.15) into a buffer that is too small for a float32 channels_last x of C < 8 and even H and W:
    threads overwrite each other's pixels, so that the gradient is wrong, and the last one corrupts the heap.
    """
    if x.device.type == "cpu":
        return F.conv2d(x[:, :, offset::2, offset::2], weight)
    return F.conv2d(x[:, :, offset:, offset:], weight, stride=2)


def _definitions(
    xs: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], affines: Sequence[Affine] | None, constants: Constants
) -> tuple[Tensor, ...]:
    """Compute `definition` of each layer."""
    c, none = constants, [None] * len(xs)
    layers = zip(xs, weights, c.running or none, affines or none, strict=True)
    return tuple(definition(*layer, c.training, c.momentum, c.eps, c.sync) for layer in layers)


def _sizes(x: Tensor, weights: Sequence[Tensor]) -> tuple[int, int, int, int]:
    """Return (N, D, H', W') of the output."""
    N, _, H, W = x.shape
    return N, sum(w.shape[0] for w in weights), H // len(weights), W // len(weights)


def _apart(weights: Sequence[Tensor], counts: Sequence[int]) -> list[list[Tensor]]:
    """Split the weights by layer."""
    rest = iter(weights)
    return [[next(rest) for _ in range(count)] for count in counts]


@FORWARD.fake
def _fake(a: ReLUConvBN) -> ReLUConvBNResults:
    sizes = [_sizes(x, w) for x, w in zip(a.xs, _apart(a.weights, a.counts), strict=True)]
    outs = [
        torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for x, size in zip(a.xs, sizes, strict=True)
    ]
    statistics = [out.new_empty(2, size[1], dtype=torch.float64) for out, size in zip(outs, sizes, strict=True)]
    return ReLUConvBNResults(outs, [torch.empty_like(out) for out in outs] if a.scales else [], statistics)


@BACKWARD.fake
def _fake_backward(a: ReLUConvBNBackward) -> ReLUConvBNGradients:
    grad_xs = [
        torch.empty_like(x, memory_format=torch.channels_last) if need else x.new_empty(0)
        for x, need in zip(a.xs, a.need_xs, strict=True)
    ]
    of_weights, *of_affine = ([t.new_empty(t.shape) for t in ts if a.need_weights] for ts in (a.weights, a.scales, a.scales))
    return ReLUConvBNGradients(grad_xs, of_weights, *of_affine)


@FORWARD.cuda
def _on_gpu(a: ReLUConvBN) -> ReLUConvBNResults:
    from fastdarts.kernels import relu_conv_bn as kernels  # not above: Triton may be missing

    none = [None] * len(a.xs)
    tensors = a.running_means or none, a.running_vars or none, a.scales or none, a.shifts or none
    layers = [kernels.Layer(*each) for each in zip(a.xs, _apart(a.weights, a.counts), *tensors, strict=True)]
    outs, statistics, normalised = map(list, zip(*kernels.forwards(layers, a.eps, ranks_of(a.sync)), strict=True))
    return ReLUConvBNResults(outs, normalised if a.scales else [], statistics)


@BACKWARD.cuda
def _backward_on_gpu(a: ReLUConvBNBackward) -> ReLUConvBNGradients:
    from fastdarts.kernels import relu_conv_bn_backward as kernels

    tensors = a.grads, a.xs, _apart(a.weights, a.counts), a.normalised, a.statistics, a.scales or [None] * len(a.xs)
    layers = [kernels.Layer(*each) for each in zip(*tensors, strict=True)]
    done = kernels.backwards(layers, a.eps, a.batch_statistics, a.need_xs, a.need_weights, ranks_of(a.sync))
    of_affine = [[grads[i] for _, _, grads in done if grads] for i in range(2)]
    return ReLUConvBNGradients([one.x for one in done], [g for one in done for g in one.weights], *of_affine)


class _Split(NamedTuple):
    """How the flat tensors of a call divide: weights of each layer, and whether affine parameters follow."""

    counts: list[int]
    affine: bool

    def __call__(self, tensors: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        """Divide into those of xs, of the weights, of scales and of shifts."""
        xs, weights = len(self.counts), sum(self.counts)
        rest = list(tensors)
        sizes = xs, weights, *((xs, xs) if self.affine else (0, 0))
        a, b, c, d = ([rest.pop(0) for _ in range(size)] for size in sizes)
        return a, b, c, d


class _ReLUConvBN(torch.autograd.Function):
    """The registered op and its gradients; xs are channels_last-contiguous, the other tensors contiguous."""

    @staticmethod
    def forward(ctx: Any, constants: Constants, split: _Split, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the layers' outputs, then their statistics. tensors: xs, then all weights, scales and shifts.

        constants.running is None if the batch's statistics normalise.
        """
        (xs, weights, scales, shifts), c = split(tensors), constants
        running = [[], []] if c.running is None else [list(buffers) for buffers in zip(*c.running, strict=True)]
        args = xs, weights, split.counts, scales, shifts, *running, c.eps, handle(c.sync)
        outs, normalised, statistics = torch.ops.fastdarts.relu_conv_bn(*args)
        ctx.save_for_backward(*tensors, *(normalised or outs), *statistics)
        ctx.constants = c if c.running is None else c._replace(running=None)
        ctx.split, ctx.batch_statistics = split, c.running is None
        ctx.mark_non_differentiable(*statistics)
        return *outs, *statistics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layers, c, split = len(ctx.split.counts), ctx.constants, ctx.split
        saved = ctx.saved_tensors
        tensors, normalised, statistics = saved[: -2 * layers], saved[-2 * layers : -layers], saved[-layers:]
        xs, weights, scales, _ = split(tensors)
        _, _, *wanted = ctx.needs_input_grad  # of each tensor
        if torch.is_grad_enabled():
            running = None if ctx.batch_statistics else [tuple(s.to(xs[0].dtype)) for s in statistics]
            c = c._replace(running=running, training=False, momentum=0.0)

            def again(*tensors: Tensor) -> tuple[Tensor, ...]:
                xs, weights, scales, shifts = split(tensors)
                affines = list(zip(scales, shifts, strict=True)) or None
                return _definitions(xs, _apart(weights, split.counts), affines, c)

            of_tensors = batch_norm.through_definition("relu_conv_bn", again, tensors, wanted, grads[:layers])
            return None, None, *of_tensors
        need_xs, need_weights = wanted[:layers], any(wanted[layers:])
        args = ReLUConvBNBackward(
            [g.contiguous(memory_format=torch.channels_last) for g in grads[:layers]],
            xs,
            weights,
            split.counts,
            scales,
            normalised,
            statistics,
            c.eps,
            ctx.batch_statistics,
            need_xs,
            need_weights,
            handle(c.sync),
        )
        grad_xs, *of_weights = torch.ops.fastdarts.relu_conv_bn_backward(*args)
        wanted_xs = (g if need else None for g, need in zip(grad_xs, need_xs, strict=True))
        rest = [g for each in of_weights for g in each] or [None] * (len(tensors) - layers)
        return None, None, *wanted_xs, *rest


def _registered(
    xs: list[Tensor], weights: list[list[Tensor]], affines: Sequence[Affine] | None, constants: Constants
) -> tuple[Tensor, ...]:
    dtype, layers, c = backends.arithmetic(xs[0]), len(xs), constants
    laid_out = [x.to(dtype).contiguous(memory_format=torch.channels_last) for x in xs]
    flat = [w.to(dtype).contiguous() for each in weights for w in each]
    flat += [t.contiguous() for each in zip(*(affines or ()), strict=True) for t in each]
    fixed = c._replace(running=None) if c.training and c.running is not None else c
    results = _ReLUConvBN.apply(fixed, _Split([len(w) for w in weights], affines is not None), *laid_out, *flat)
    outs, statistics = results[:layers], results[layers:]
    if c.training and c.running is not None:
        for buffers, moved, out in zip(c.running, statistics, outs, strict=True):
            batch_norm.update_running(buffers, moved, out.numel() // out.shape[1], c.momentum, c.sync)
    return outs


backends.register(
    "relu_conv_bn",
    backends.Backend("cpu", backends.native_cpu(torch.float32, torch.float64, op="relu_conv_bn"), _registered),
    backends.Backend("triton", backends.triton(torch.float32, torch.bfloat16, torch.float16), _registered),
    backends.Backend("definition", backends.anything, _definitions),
)


def _check(
    xs: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], affines: Sequence[Affine] | None, constants: Constants
) -> None:
    """Raise ValueError, saying what was given, unless the arguments are as relu_conv_bns documents them."""
    running = constants.running
    if len(xs) not in (1, 2) or {len(weights), *(len(each or xs) for each in (running, affines))} != {len(xs)}:
        raise ValueError(
            f"expected one or two layers, each with its weights, got {len(xs)} inputs, {len(weights)} lists of weights"
        )
    for i, (x, each) in enumerate(zip(xs, weights, strict=True)):
        _check_layer(x, each, None if running is None else running[i], constants)
        for name, t in zip(("scale", "shift"), affines[i] if affines else (), strict=False):
            D = sum(w.shape[0] for w in each)
            if tuple(t.shape) != (D,):
                raise ValueError(f"{name} must be ({D},), got {tuple(t.shape)}")
            backends.check_alike(name, t, x)
        backends.check_alike("the second input", x, xs[0])
    sizes = {(N, H, W) for N, _, H, W in map(_sizes, xs, weights)}
    if len(sizes) > 1:
        raise ValueError(f"layers that run together must agree in images and pixels, got {sorted(sizes)}")


def _check_layer(x: Tensor, weights: Sequence[Tensor], running: Running | None, constants: Constants) -> None:
    """Raise ValueError, saying what was given, unless the arguments are as relu_conv_bn documents them."""
    if x.dim() != 4 or not x.is_floating_point() or not x.numel():
        raise ValueError(f"x must be floating point (N, C, H, W) and not empty, got {x.dtype} {tuple(x.shape)}")
    if len(weights) not in (1, 2):
        raise ValueError(f"weights must be one convolution, or two for FactorizedReduce, got {len(weights)}")
    C, first = x.shape[1], weights[0]
    for w in weights:
        if w.dim() != 4 or tuple(w.shape[1:]) != (C, 1, 1) or w.shape != first.shape or not w.numel():
            raise ValueError(f"weights must be (D, {C}, 1, 1), equal in D, got {[tuple(w.shape) for w in weights]}")
        backends.check_alike("weights", w, x)
    N, D, H, W = _sizes(x, weights)
    if len(weights) == 2 and (x.shape[2] % 2 or x.shape[3] % 2):
        raise ValueError(f"two weights halve the image: its sides must be even, got {x.shape[2]} x {x.shape[3]} pixels")
    c = constants
    batch_norm.check(running, D, first, c.training, N * H * W, c.momentum, c.eps)
