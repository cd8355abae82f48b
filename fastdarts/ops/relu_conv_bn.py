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
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    backend: str = "auto",
    sync: Sync | None = None,
) -> Tensor:
    """Compute BatchNorm without affine parameters of a 1x1 convolution of ReLU(x).

    x         (N, C, H, W), floating point
    weights   one (D, C, 1, 1): stride 1. Two (D/2, C, 1, 1): FactorizedReduce, each of stride 2, the second one offset by a
              pixel (odd rows and columns), concatenated; H and W even. Of x' dtype (any floating point one under autocast)
    running   None, or running mean and variance: (D,), of the weights' dtype. Updated in place, once, when training
    training  True: batch statistics. False: the running ones, or, without them, batch statistics
    momentum  of the running statistics
    backend   "auto", "cpu" (C++: float32, float64), "triton" (NVIDIA GPUs: float32, bfloat16, float16) or "definition"
    sync      sums batch statistics over the ranks that share a batch; all ranks have as many images

    Returns (N, D, H, W), or (N, D, H/2, W/2); channels_last from a fused backend, which takes x in any layout. Under
    autocast everything but the running statistics has autocast's dtype; sums are float32 on a GPU whatever the dtype, and
    products of float32 are never TF32.
    Differentiable twice in x and in the weights. Raises ValueError for arguments that do not fit, BackendUnavailable.
    """
    layer = [x], [weights], None if running is None else [running]
    return relu_conv_bns(*layer, training=training, momentum=momentum, eps=eps, backend=backend, sync=sync)[0]


def relu_conv_bns(
    xs: Sequence[Tensor],
    weights: Sequence[Sequence[Tensor]],
    running: Sequence[Running] | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    backend: str = "auto",
    sync: Sync | None = None,
) -> tuple[Tensor, ...]:
    """Compute relu_conv_bn of one layer, or of two that are ready together and share one sum over the ranks.

    xs, weights and running hold those of each layer. The outputs agree in N, H and W, the xs in dtype and device.
    """
    constants = Constants(running, training, momentum, eps, sync)
    _check(xs, weights, constants)
    args = list(xs), [list(w) for w in weights], constants
    return backends.run("relu_conv_bn", backend, xs[0].device, backends.arithmetic(xs[0]), *args)


def definition(
    x: Tensor,
    weights: Sequence[Tensor],
    running: Running | None,
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
    return batch_norm.batch_norm(y, running, training, momentum, eps, sync)


def halving_convolution(x: Tensor, weight: Tensor, offset: int = 0) -> Tensor:
    """1x1 convolution of stride 2 starting at pixel (offset, offset): (N, C, H, W), (D, C, 1, 1) -> (N, D, H', W').

    On a CPU the pixels are gathered first. F.conv2d with stride=2 packs them in oneDNN's AVX2 kernel of the weight gradient
    (seen in 3.13.3, of torch 2.15) into a buffer that is too small for a float32 channels_last x of C < 8 and even H and W:
    threads overwrite each other's pixels, so that the gradient is wrong, and the last one corrupts the heap.
    """
    if x.device.type == "cpu":
        return F.conv2d(x[:, :, offset::2, offset::2], weight)
    return F.conv2d(x[:, :, offset:, offset:], weight, stride=2)


def _definitions(xs: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], constants: Constants) -> tuple[Tensor, ...]:
    """Compute `definition` of each layer."""
    c = constants
    layers = zip(xs, weights, c.running or [None] * len(xs), strict=True)
    return tuple(definition(x, w, buffers, c.training, c.momentum, c.eps, c.sync) for x, w, buffers in layers)


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
    return ReLUConvBNResults(outs, statistics)


@BACKWARD.fake
def _fake_backward(a: ReLUConvBNBackward) -> ReLUConvBNGradients:
    grad_xs = [
        torch.empty_like(x, memory_format=torch.channels_last) if need else x.new_empty(0)
        for x, need in zip(a.xs, a.need_xs, strict=True)
    ]
    return ReLUConvBNGradients(grad_xs, [w.new_empty(w.shape) for w in a.weights] if a.need_weights else [])


@FORWARD.cuda
def _on_gpu(a: ReLUConvBN) -> ReLUConvBNResults:
    from fastdarts.kernels import relu_conv_bn as kernels  # not above: Triton may be missing

    none = [None] * len(a.xs)
    layers = zip(a.xs, _apart(a.weights, a.counts), a.running_means or none, a.running_vars or none, strict=True)
    outs, statistics = zip(*kernels.forwards(list(layers), a.eps, ranks_of(a.sync)), strict=True)
    return ReLUConvBNResults(list(outs), list(statistics))


@BACKWARD.cuda
def _backward_on_gpu(a: ReLUConvBNBackward) -> ReLUConvBNGradients:
    from fastdarts.kernels import relu_conv_bn_backward as kernels

    layers = list(zip(a.grads, a.xs, _apart(a.weights, a.counts), a.outs, a.statistics, strict=True))
    done = kernels.backwards(layers, a.eps, a.batch_statistics, a.need_xs, a.need_weights, ranks_of(a.sync))
    return ReLUConvBNGradients([grad_x for grad_x, _ in done], [g for _, of_weights in done for g in of_weights])


class _ReLUConvBN(torch.autograd.Function):
    """The registered op and its gradients; xs are channels_last-contiguous, the weights are contiguous."""

    @staticmethod
    def forward(ctx: Any, constants: Constants, counts: list[int], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the layers' outputs, then their statistics. tensors: xs, then all weights.

        constants.running is None if the batch's statistics normalise.
        """
        layers, c = len(counts), constants
        xs, weights = tensors[:layers], tensors[layers:]
        running = [[], []] if c.running is None else [list(buffers) for buffers in zip(*c.running, strict=True)]
        outs, statistics = torch.ops.fastdarts.relu_conv_bn(xs, weights, counts, *running, c.eps, handle(c.sync))
        ctx.save_for_backward(*tensors, *outs, *statistics)
        ctx.constants = c if c.running is None else c._replace(running=None)
        ctx.counts, ctx.batch_statistics = counts, c.running is None
        ctx.mark_non_differentiable(*statistics)
        return *outs, *statistics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layers, weights_end = len(ctx.counts), len(ctx.counts) + sum(ctx.counts)
        saved, c = ctx.saved_tensors, ctx.constants
        xs, weights = saved[:layers], saved[layers:weights_end]
        outs, statistics = saved[weights_end : weights_end + layers], saved[weights_end + layers :]
        _, _, *wanted = ctx.needs_input_grad  # of each x and each weight
        if torch.is_grad_enabled():
            running = None if ctx.batch_statistics else [tuple(s.to(xs[0].dtype)) for s in statistics]
            c = c._replace(running=running, training=False, momentum=0.0)

            def again(*tensors: Tensor) -> tuple[Tensor, ...]:
                return _definitions(tensors[:layers], _apart(tensors[layers:], ctx.counts), c)

            of_tensors = batch_norm.through_definition("relu_conv_bn", again, [*xs, *weights], wanted, grads[:layers])
            return None, None, *of_tensors
        need_xs, need_weights = wanted[:layers], any(wanted[layers:])
        args = ReLUConvBNBackward(
            [g.contiguous(memory_format=torch.channels_last) for g in grads[:layers]],
            xs,
            weights,
            ctx.counts,
            outs,
            statistics,
            c.eps,
            ctx.batch_statistics,
            need_xs,
            need_weights,
            handle(c.sync),
        )
        grad_xs, grad_weights = torch.ops.fastdarts.relu_conv_bn_backward(*args)
        wanted_xs = (g if need else None for g, need in zip(grad_xs, need_xs, strict=True))
        return None, None, *wanted_xs, *(grad_weights or [None] * len(weights))


def _registered(xs: list[Tensor], weights: list[list[Tensor]], constants: Constants) -> tuple[Tensor, ...]:
    dtype, layers, c = backends.arithmetic(xs[0]), len(xs), constants
    laid_out = [x.to(dtype).contiguous(memory_format=torch.channels_last) for x in xs]
    flat = [w.to(dtype).contiguous() for each in weights for w in each]
    fixed = c._replace(running=None) if c.training and c.running is not None else c
    results = _ReLUConvBN.apply(fixed, [len(w) for w in weights], *laid_out, *flat)
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


def _check(xs: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], constants: Constants) -> None:
    """Raise ValueError, saying what was given, unless the arguments are as relu_conv_bns documents them."""
    running = constants.running
    if len(xs) not in (1, 2) or {len(weights), len(xs if running is None else running)} != {len(xs)}:
        raise ValueError(
            f"expected one or two layers, each with its weights, got {len(xs)} inputs, {len(weights)} lists of weights"
        )
    for i, (x, each) in enumerate(zip(xs, weights, strict=True)):
        _check_layer(x, each, None if running is None else running[i], constants)
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
