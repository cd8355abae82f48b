"""3x3 convolutions, each with BatchNorm, with ReLUs between them: the stem of a network.

Notation: N images, H W pixels, C channels of the input, D_i channels of layer i, L layers, m values of a channel.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts.kernels.arguments import ConvBNChain, ConvBNChainBackward, ConvBNChainGradients, ConvBNChainResults
from fastdarts.ops import backend as backends
from fastdarts.ops import batch_norm
from fastdarts.ops.batch_norm import Running
from fastdarts.ops.schema import Op
from fastdarts.ops.sync import Sync, handle

Norm = tuple[Tensor, Tensor]  # weight and bias of a BatchNorm, (D,) each
FORWARD = Op("conv_bn_chain", ConvBNChain, ConvBNChainResults)
BACKWARD = Op("conv_bn_chain_backward", ConvBNChainBackward, ConvBNChainGradients)


class Constants(NamedTuple):
    """The arguments of conv_bn_chain that are not differentiable, in the definition's order."""

    running: Sequence[Running] | None
    strides: list[int]
    outputs: int
    training: bool
    momentum: float
    eps: float
    sync: Sync | None


def conv_bn_chain(
    x: Tensor,
    weights: Sequence[Tensor],
    norms: Sequence[Norm],
    running: Sequence[Running] | None,
    *,
    strides: Sequence[int],
    outputs: int = 1,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    backend: str = "auto",
    sync: Sync | None = None,
) -> tuple[Tensor, ...]:
    """Compute u_1 = BN(conv(x)), u_i = BN(conv(ReLU(u_(i-1)))); return the last `outputs` of u_1 ... u_L, before ReLU.

    x         (N, C, H, W), floating point
    weights   of each layer (D_i, D_(i-1), 3, 3), D_0 = C, zero padding of one pixel. Of x' dtype, as are the norms (any
              floating point one under autocast)
    norms     of each layer BatchNorm's weight and bias: (D_i,) each
    running   None, or of each layer running mean and variance: (D_i,) of the weights' dtype. Updated in place, once, when
              training
    strides   of each layer 1 or 2
    training  True: batch statistics. False: the running ones, or, without them, batch statistics
    momentum  of the running statistics
    backend   "auto", "cpu" (C++: float32, float64; keeps one tensor a layer for backward) or "definition"
    sync      sums batch statistics over the ranks that share a batch, layer by layer; all ranks have as many images

    Returns tensors (N, D_i, H_i, W_i), H_i = ceil(H_(i-1) / stride); channels_last from a native backend, which takes x in
    any layout. Differentiable twice in x, weights and norms. Raises ValueError for arguments that do not fit,
    BackendUnavailable.
    """
    constants = Constants(running, list(strides), outputs, training, momentum, eps, sync)
    _check(x, weights, norms, constants)
    args = x, list(weights), list(norms), constants
    return backends.run("conv_bn_chain", backend, x.device, backends.arithmetic(x), *args)


def definition(
    x: Tensor,
    weights: Sequence[Tensor],
    norms: Sequence[Norm],
    running: Sequence[Running] | None,
    strides: Sequence[int],
    outputs: int,
    training: bool,
    momentum: float,
    eps: float,
    sync: Sync | None = None,
) -> tuple[Tensor, ...]:
    """conv_bn_chain in plain PyTorch, at any dtype on any device; same arguments."""
    outs: list[Tensor] = []
    for i, (weight, (scale, shift), stride) in enumerate(zip(weights, norms, strides, strict=True)):
        if i:  # in place, as usual, unless the tensor is an output
            x = F.relu(x, inplace=i - 1 < len(weights) - outputs)
        buffers = running[i] if running else None
        y = F.conv2d(x, weight, stride=stride, padding=1)
        x = batch_norm.batch_norm(y, buffers, training, momentum, eps, sync, scale, shift)
        outs.append(x)
    return tuple(outs[-outputs:])


def _sizes(x: Tensor, weights: Sequence[Tensor], strides: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Return (N, D_i, H_i, W_i) of each layer."""
    N, _, H, W = x.shape
    sizes = []
    for w, stride in zip(weights, strides, strict=True):
        H, W = (H - 1) // stride + 1, (W - 1) // stride + 1
        sizes.append((N, w.shape[0], H, W))
    return sizes


@FORWARD.fake
def _fake(a: ConvBNChain) -> ConvBNChainResults:
    x, sizes = a.x, _sizes(a.x, a.weights, a.strides)

    def empty(size: tuple[int, ...]) -> Tensor:
        return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

    statistics = x.new_empty(3, sum(size[1] for size in sizes), dtype=torch.float64)
    return ConvBNChainResults([empty(size) for size in sizes[-a.outputs :]], [empty(size) for size in sizes], statistics)


@BACKWARD.fake
def _fake_backward(a: ConvBNChainBackward) -> ConvBNChainGradients:
    grad_x = torch.empty_like(a.x, memory_format=torch.channels_last) if a.need_x else a.x.new_empty(0)
    like = a.weights, a.norm_weights, a.norm_biases
    return ConvBNChainGradients(grad_x, *([t.new_empty(t.shape) for t in ts] if a.need_weights else [] for ts in like))


class _ConvBNChain(torch.autograd.Function):
    """The registered op and its gradients; x is channels_last-contiguous, the parameters are contiguous."""

    @staticmethod
    def forward(ctx: Any, constants: Constants, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        """Return outputs, then statistics. constants.running is None if the batch's statistics normalise."""
        c = constants
        running = [[], []] if c.running is None else [list(buffers) for buffers in zip(*c.running, strict=True)]
        rest = *running, c.strides, c.outputs, c.eps, handle(c.sync)
        outs, ys, statistics = torch.ops.fastdarts.conv_bn_chain(x, *_parted(parameters, len(c.strides)), *rest)
        ctx.save_for_backward(x, statistics, *ys, *parameters)
        ctx.constants, ctx.batch_statistics = c if c.running is None else c._replace(running=None), c.running is None
        ctx.mark_non_differentiable(statistics)
        return *outs, statistics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        c = ctx.constants
        layers = len(c.strides)
        x, statistics, *rest = ctx.saved_tensors
        ys, parameters = rest[:layers], rest[layers:]
        _, *wanted = ctx.needs_input_grad  # of x and each parameter
        if torch.is_grad_enabled():

            def again(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
                weights, scales, shifts = _parted(parameters, layers)
                running = None if ctx.batch_statistics else _layers(statistics.to(x.dtype), weights)
                norms = list(zip(scales, shifts, strict=True))
                return definition(x, weights, norms, *c._replace(running=running, training=False, momentum=0.0))

            return None, *batch_norm.through_definition("conv_bn_chain", again, [x, *parameters], wanted, grads[:-1])
        need_x, need_weights = wanted[0], any(wanted[1:])
        args = ConvBNChainBackward(
            [g.contiguous(memory_format=torch.channels_last) for g in grads[:-1]],
            x,
            *_parted(parameters, layers),
            ys,
            statistics,
            c.strides,
            c.eps,
            ctx.batch_statistics,
            need_x,
            need_weights,
            handle(c.sync),
        )
        grad_x, *of_parameters = torch.ops.fastdarts.conv_bn_chain_backward(*args)
        flat = [g for group in of_parameters for g in group] if need_weights else [None] * len(parameters)
        return None, grad_x if need_x else None, *flat


def _parted(parameters: Sequence[Tensor], layers: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Split into weights, norms' weights and norms' biases, of all layers each."""
    return list(parameters[:layers]), list(parameters[layers : 2 * layers]), list(parameters[2 * layers :])


def _layers(statistics: Tensor, weights: Sequence[Tensor]) -> list[Running]:
    """Return mean and variance of each layer, from the rows of all."""
    mean, var, *_ = statistics
    sizes = [w.shape[0] for w in weights]
    return list(zip(mean.split(sizes), var.split(sizes), strict=True))


def _registered(x: Tensor, weights: list[Tensor], norms: list[Norm], constants: Constants) -> tuple[Tensor, ...]:
    c = constants
    x = x.contiguous(memory_format=torch.channels_last)
    parameters = [t.contiguous() for t in (*weights, *(n[0] for n in norms), *(n[1] for n in norms))]
    *outs, statistics = _ConvBNChain.apply(c._replace(running=None) if c.training else c, x, *parameters)
    if c.training and c.running is not None:
        sizes = _sizes(x, weights, c.strides)
        for buffers, (mean, var), (N, _, H, W) in zip(c.running, _layers(statistics, weights), sizes, strict=True):
            batch_norm.update_running(buffers, torch.stack([mean, var]), N * H * W, c.momentum, c.sync)
    return tuple(outs)


def _by_definition(x: Tensor, weights: list[Tensor], norms: list[Norm], constants: Constants) -> tuple[Tensor, ...]:
    return definition(x, weights, norms, *constants)


backends.register(
    "conv_bn_chain",
    backends.Backend("cpu", backends.native_cpu(torch.float32, torch.float64, op="conv_bn_chain"), _registered),
    backends.Backend("definition", backends.anything, _by_definition),
)


def _check(x: Tensor, weights: Sequence[Tensor], norms: Sequence[Norm], constants: Constants) -> None:
    """Raise ValueError, saying what was given, unless the arguments are as conv_bn_chain documents them."""
    if x.dim() != 4 or not x.is_floating_point() or not x.numel():
        raise ValueError(f"x must be floating point (N, C, H, W) and not empty, got {x.dtype} {tuple(x.shape)}")
    running, strides, outputs, training, momentum, eps, _ = constants
    layers = len(weights)
    if not layers or {len(norms), len(strides), len(running if running is not None else norms)} != {layers}:
        got = f"{layers} weights, {len(norms)} norms, {len(strides)} strides"
        raise ValueError(f"every layer has a weight, a norm, a stride and, if any has, running statistics: got {got}")
    if not 1 <= outputs <= layers:
        raise ValueError(f"outputs = {outputs}: of {layers} layers the last 1 to {layers} can be returned")
    if any(stride not in (1, 2) for stride in strides):
        raise ValueError(f"strides must be 1 or 2, got {list(strides)}")
    C = x.shape[1]
    for i, (w, norm, (N, D, H, W)) in enumerate(zip(weights, norms, _sizes(x, weights, strides), strict=True)):
        if tuple(w.shape) != (D, C, 3, 3) or not w.numel():
            raise ValueError(f"layer {i}: the weight must be (D, {C}, 3, 3), got {tuple(w.shape)}")
        backends.check_alike(f"layer {i}: the weight", w, x)
        for name, t in zip(("weight", "bias"), norm, strict=True):
            if tuple(t.shape) != (D,):
                raise ValueError(f"layer {i}: the norm's {name} must be ({D},), got {tuple(t.shape)}")
            backends.check_alike(f"layer {i}: the norm's {name}", t, x)
        batch_norm.check(running[i] if running else None, D, w, training, N * H * W, momentum, eps)
        C = D
