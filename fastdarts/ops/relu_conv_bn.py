"""ReLU, 1x1 convolution, BatchNorm: a cell's preprocess layer, at full resolution or halving it (FactorizedReduce).

Letters: N images, C input and D output channels, H W pixels, m = N*H'*W' values of an output channel.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts.ops import backend as backends
from fastdarts.ops import batch_norm
from fastdarts.ops.batch_norm import Running, Sync, beyond_fused

torch.library.define(
    "fastdarts::relu_conv_bn",
    "(Tensor x, Tensor[] weights, Tensor? running_mean, Tensor? running_var, float eps) -> (Tensor out, Tensor statistics)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "fastdarts::relu_conv_bn_backward",
    "(Tensor grad, Tensor x, Tensor[] weights, Tensor out, Tensor statistics, float eps, bool batch_statistics, "
    "bool need_x, bool need_weights) -> (Tensor grad_x, Tensor[] grad_weights)",
    tags=torch.Tag.pt2_compliant_tag,
)


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
    """BatchNorm without affine parameters of a 1x1 convolution of ReLU(x).

    x         (N, C, H, W), floating point
    weights   one (D, C, 1, 1): stride 1. Two (D/2, C, 1, 1): FactorizedReduce, each of stride 2, the second one pixel on
              (odd rows and columns), concatenated; H and W even. Of x' dtype (any floating point one under autocast)
    running   None, or running mean and variance: (D,), of the weights' dtype. Moved in place, once, when training
    training  True: batch statistics. False: the running ones, or, where there are none, batch statistics
    momentum  of the running statistics
    backend   "auto", "cpu" (C++: float32, float64), "triton" (NVIDIA GPUs: float32, bfloat16, float16) or "definition"
    sync      sums batch statistics over the ranks that share a batch; then only the definition serves

    Returns (N, D, H, W), or (N, D, H/2, W/2); channels_last from a fused backend, which takes x in any layout. Under
    autocast all is in autocast's dtype but the running statistics; sums are float32 on a GPU whatever the dtype, and
    products of float32 are float32's (never TF32).
    Differentiable twice in x and in the weights. Raises ValueError for arguments that do not fit, BackendUnavailable.
    """
    _check(x, weights, running, training, momentum, eps)
    args = x, list(weights), running, training, momentum, eps, sync
    return backends.run("relu_conv_bn", backend, x.device, backends.arithmetic(x), *args)


def definition(
    x: Tensor,
    weights: Sequence[Tensor],
    running: Running | None,
    training: bool,
    momentum: float,
    eps: float,
    sync: Sync | None = None,
) -> Tensor:
    """What relu_conv_bn computes, in plain PyTorch at any dtype on any device; arguments as there."""
    x = F.relu(x)
    if len(weights) == 1:
        y = F.conv2d(x, weights[0])
    else:
        y = torch.cat([F.conv2d(x, weights[0], stride=2), F.conv2d(x[:, :, 1:, 1:], weights[1], stride=2)], dim=1)
    return batch_norm.batch_norm(y, running, training, momentum, eps, sync)


def _sizes(x: Tensor, weights: Sequence[Tensor]) -> tuple[int, int, int, int]:
    """(N, D, H', W') of the output."""
    N, _, H, W = x.shape
    return N, sum(w.shape[0] for w in weights), H // len(weights), W // len(weights)


@torch.library.register_fake("fastdarts::relu_conv_bn")
def _fake(
    x: Tensor, weights: list[Tensor], running_mean: Tensor | None, running_var: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    sizes = _sizes(x, weights)
    out = torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return out, x.new_empty(2, sizes[1], dtype=torch.float64)


@torch.library.register_fake("fastdarts::relu_conv_bn_backward")
def _fake_backward(
    grad: Tensor,
    x: Tensor,
    weights: list[Tensor],
    out: Tensor,
    statistics: Tensor,
    eps: float,
    batch_statistics: bool,
    need_x: bool,
    need_weights: bool,
) -> tuple[Tensor, list[Tensor]]:
    grad_x = torch.empty_like(x, memory_format=torch.channels_last) if need_x else x.new_empty(0)
    return grad_x, [w.new_empty(w.shape) for w in weights] if need_weights else []


@torch.library.impl("fastdarts::relu_conv_bn", "cuda")
def _on_gpu(*args: Any) -> tuple[Tensor, Tensor]:
    from fastdarts.kernels import relu_conv_bn as kernels  # not above: Triton may be missing

    return kernels.forward(*args)


@torch.library.impl("fastdarts::relu_conv_bn_backward", "cuda")
def _backward_on_gpu(*args: Any) -> tuple[Tensor, list[Tensor]]:
    from fastdarts.kernels import relu_conv_bn_backward as kernels

    return kernels.backward(*args)


class _ReLUConvBN(torch.autograd.Function):
    """The registered op and its gradients; x is channels_last-contiguous, the weights are contiguous."""

    @staticmethod
    def forward(
        ctx: Any, eps: float, mean: Tensor | None, var: Tensor | None, x: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        out, statistics = torch.ops.fastdarts.relu_conv_bn(x, weights, mean, var, eps)
        ctx.save_for_backward(x, out, statistics, *weights)
        ctx.batch_statistics, ctx.eps = mean is None, eps
        ctx.mark_non_differentiable(statistics)
        return out, statistics

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, out, statistics, *weights = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]  # of x and each weight
        if torch.is_grad_enabled():
            running = None if ctx.batch_statistics else tuple(statistics.to(x.dtype))

            def again(x: Tensor, *weights: Tensor) -> Tensor:
                return definition(x, weights, running, False, 0.0, ctx.eps)

            grads = batch_norm.through_definition("relu_conv_bn", again, [x, *weights], wanted, grad)
            return None, None, None, *grads
        need_x, need_weights = wanted[0], any(wanted[1:])
        grad_x, grad_weights = torch.ops.fastdarts.relu_conv_bn_backward(
            grad.contiguous(memory_format=torch.channels_last),
            x,
            weights,
            out,
            statistics,
            ctx.eps,
            ctx.batch_statistics,
            need_x,
            need_weights,
        )
        return None, None, None, grad_x if need_x else None, *(grad_weights or [None] * len(weights))


def _registered(
    x: Tensor, weights: list[Tensor], running: Running | None, training: bool, momentum: float, eps: float, sync: None
) -> Tensor:
    dtype = backends.arithmetic(x)
    x, weights = x.to(dtype).contiguous(memory_format=torch.channels_last), [w.to(dtype).contiguous() for w in weights]
    mean, var = (None, None) if training or running is None else running
    out, statistics = _ReLUConvBN.apply(eps, mean, var, x, *weights)
    if training and running is not None:
        batch_norm.update_running(running, statistics, out.numel() // out.shape[1], momentum)
    return out


backends.register(
    "relu_conv_bn",
    backends.Backend("cpu", backends.native_cpu(torch.float32, torch.float64, op="relu_conv_bn"), _registered, beyond_fused),
    backends.Backend("triton", backends.triton(torch.float32, torch.bfloat16, torch.float16), _registered, beyond_fused),
    backends.Backend("definition", backends.anything, definition),
)


def _check(x: Tensor, weights: Sequence[Tensor], running: Running | None, training: bool, momentum: float, eps: float) -> None:
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
    batch_norm.check(running, D, first, training, N * H * W, momentum, eps)
