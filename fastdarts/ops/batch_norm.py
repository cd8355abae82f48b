"""Shared by the ops that end in BatchNorm: running statistics, checks, the double backward.

Notation: N images, H W pixels of the normalised tensor, m = N*H*W, B channels of all of an op's norms, concatenated.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdarts.logs import say_once
from fastdarts.ops.sync import Sync

Running = tuple[Tensor, Tensor]  # running mean and running variance, (B,) each

if TYPE_CHECKING:

    class BatchNorm(nn.Module):
        """torch's BatchNorm2d, whose own annotations leave open whether it has running statistics and a momentum."""

        weight: Tensor
        bias: Tensor
        running_mean: Tensor
        running_var: Tensor
        num_batches_tracked: Tensor
        momentum: float
        eps: float
        affine: bool
        track_running_stats: bool
        num_features: int

        def __init__(self, num_features: int, affine: bool = True) -> None: ...
else:
    BatchNorm = nn.BatchNorm2d


def batch_norm(
    x: Tensor,
    running: Running | None,
    training: bool,
    momentum: float,
    eps: float,
    sync: Sync | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Compute (x - mean) / sqrt(var + eps) * scale + shift over (N, H, W), with batch or running statistics.

    Batch statistics when training or without running ones. x (N, B, H, W); running, updated in place when training, with the
    unbiased variance; scale, shift (B,), both or none. With `sync`, batch statistics cover the images of all ranks, each of
    which calls this in the same order, forward and backward.
    """
    mean, var = running or (None, None)
    if sync is None or not (training or running is None):
        return F.batch_norm(x, mean, var, scale, shift, training or running is None, momentum, eps)
    y = _synchronised(x, running, momentum, eps, sync)
    if scale is not None and shift is not None:
        y = y * scale[:, None, None] + shift[:, None, None]
    return y.to(x.dtype)


def _synchronised(x: Tensor, running: Running | None, momentum: float, eps: float, sync: Sync) -> Tensor:
    """Compute batch_norm with the statistics of all ranks, without scale and shift; half precision is computed in float32.

    One all-reduce forward, one backward: of a table with a row per rank, its mean and its sum of squares around that mean. All
    ranks have the same number of values.
    """
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    n = x.numel() // x.shape[1]
    m = n * sync.size
    means = wide.mean((0, 2, 3))
    squares = (wide - means[:, None, None]).square().sum((0, 2, 3))
    row = torch.cat([means, squares])[None]
    table = F.pad(row, (0, 0, sync.rank, sync.size - 1 - sync.rank))
    means, squares = _SumOverRanks.apply(table, sync).chunk(2, dim=1)
    mean = means.mean(0)
    total = squares.sum(0) + n * (means - mean).square().sum(0)
    if running is not None:
        with torch.no_grad():
            running[0].lerp_(mean.to(running[0].dtype), momentum)
            running[1].lerp_((total / (m - 1)).to(running[1].dtype), momentum)
    return (wide - mean[:, None, None]) * (total / m + eps).rsqrt()[:, None, None]


class _SumOverRanks(torch.autograd.Function):
    """Sum a tensor over the ranks. The gradient of a rank's term is the sum of all ranks' gradients w.r.t. the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sync: Sync) -> Tensor:
        ctx.sync = sync
        total = x.clone(memory_format=torch.contiguous_format)
        sync.sum(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _SumOverRanks.apply(grad, ctx.sync), None


def update_running(running: Running, statistics: Tensor, m: int, momentum: float, sync: Sync | None = None) -> None:
    """Update the running statistics in place with those that a native op normalised with.

    statistics  float64 (2, B): mean and biased variance over m values of each rank; the running variance takes the unbiased
                one
    """
    mean, var = statistics
    m *= 1 if sync is None else sync.size
    with torch.no_grad():
        running[0].lerp_(mean.to(running[0].dtype), momentum)
        running[1].lerp_((var * (m / max(m - 1, 1))).to(running[1].dtype), momentum)  # m = 1: nothing is normalised, B = 0
    recomputed_to_here()


def recomputed_to_here() -> None:
    """Make a recomputation of torch.utils.checkpoint, which stops at the last saved tensor, reach this point.

    A checkpointed module's BatchNorms update running statistics twice. Without this, an op that updates them after saving its
    tensors would miss the second update.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        torch.empty(0, requires_grad=True).square()  # saves an empty tensor, and is dropped


def check(running: Running | None, B: int, like: Tensor, training: bool, m: int, momentum: float, eps: float) -> None:
    """Raise ValueError unless the arguments of a BatchNorm fit; `like` is a tensor of the op's parameters.

    running  None, or mean and variance: (B,), of like's dtype and device
    m        values of a channel; batch statistics need two
    """
    if not 0 <= momentum <= 1 or not eps > 0:
        raise ValueError(f"momentum must lie within 0..1 and eps above 0, got {momentum} and {eps}")
    if B and m == 1 and (training or running is None):
        raise ValueError("Expected more than 1 value per channel when training: the input is one image of one pixel")
    if running is None:
        return
    for name, buffer in zip(("running mean", "running variance"), running, strict=True):
        if tuple(buffer.shape) != (B,) or buffer.dtype != like.dtype or buffer.device != like.device:
            got = f"{buffer.dtype} {tuple(buffer.shape)} on {buffer.device}"
            raise ValueError(f"the {name} must be {like.dtype} ({B},) on {like.device}, got {got}")


def through_definition(
    op: str,
    definition: Callable[..., Tensor | tuple[Tensor, ...]],
    tensors: Sequence[Tensor | None],
    wanted: Sequence[bool],
    grad: Tensor | tuple[Tensor, ...],
) -> list[Tensor | None]:
    """Return the `wanted` gradients of `definition(*tensors)`, differentiable again w.r.t. `tensors` and `grad`.

    A native op's backward returns these under create_graph=True.
    """
    say_once(f"{op}: a gradient that is itself differentiated (create_graph=True) is computed by the definition")
    # aliases: one state may depend on another, and that path belongs to another op
    aliases = [None if t is None else t.view_as(t) for t in tensors]
    asked = [a for a, w in zip(aliases, wanted, strict=True) if w and a is not None]
    grads = iter(torch.autograd.grad(definition(*aliases), asked, grad, create_graph=True, allow_unused=True))
    return [next(grads) if w else None for w in wanted]
