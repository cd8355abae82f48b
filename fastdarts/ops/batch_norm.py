"""What the ops that end in BatchNorm without affine parameters share: running statistics, checks, the double backward.

Letters: N images, H W pixels of what is normalised, m = N*H*W, B channels of all of an op's norms one after the other.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts.logs import say_once

Running = tuple[Tensor, Tensor]  # running mean and running variance, (B,) each


def batch_norm(x: Tensor, running: Running | None, training: bool, momentum: float, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) over (N, H, W): batch statistics when training or where there are no running ones.

    x (N, B, H, W); running, moved in place when training: the unbiased variance.
    """
    mean, var = running or (None, None)
    return F.batch_norm(x, mean, var, None, None, training or running is None, momentum, eps)


def update_running(running: Running, statistics: Tensor, m: int, momentum: float) -> None:
    """Move the running statistics in place towards what a native op normalised with.

    statistics  float64 (2, B): mean and biased variance over m values; the running variance takes the unbiased one
    """
    mean, var = statistics
    with torch.no_grad():
        running[0].lerp_(mean.to(running[0].dtype), momentum)
        running[1].lerp_((var * (m / max(m - 1, 1))).to(running[1].dtype), momentum)  # m = 1: nothing is normalised, B = 0


def check(running: Running | None, B: int, like: Tensor, training: bool, m: int, momentum: float, eps: float) -> None:
    """Raise ValueError unless the arguments of a BatchNorm fit; `like` is a tensor of the op's parameters.

    running  None, or mean and variance: (B,), of like's dtype and device
    m        how many values each channel's statistics are taken over; batch statistics need two
    """
    if not 0 <= momentum <= 1 or not eps > 0:
        raise ValueError(f"momentum must lie within 0..1 and eps above 0, got {momentum} and {eps}")
    if B and m == 1 and (training or running is None):
        raise ValueError("Expected more than 1 value per channel when training: one image of one pixel is normalised")
    if running is None:
        return
    for name, buffer in zip(("running mean", "running variance"), running, strict=True):
        if tuple(buffer.shape) != (B,) or buffer.dtype != like.dtype or buffer.device != like.device:
            given = f"{buffer.dtype} {tuple(buffer.shape)} on {buffer.device}"
            raise ValueError(f"the {name} must be {like.dtype} ({B},) on {like.device}, got {given}")


def through_definition(
    op: str,
    definition: Callable[..., Tensor | tuple[Tensor, ...]],
    tensors: Sequence[Tensor | None],
    wanted: Sequence[bool],
    grad: Tensor | tuple[Tensor, ...],
) -> list[Tensor | None]:
    """The gradients of `definition(*tensors)` that are `wanted`, differentiable in turn, in `tensors` and in `grad`.

    What a native op's backward returns under create_graph=True.
    """
    say_once(f"{op}: a gradient that is differentiated again (create_graph=True) is computed through the definition")
    # aliases: a state may have been computed from another one, and that path is not this op's
    aliases = [None if t is None else t.view_as(t) for t in tensors]
    asked = [a for a, w in zip(aliases, wanted, strict=True) if w]
    grads = iter(torch.autograd.grad(definition(*aliases), asked, grad, create_graph=True, allow_unused=True))
    return [next(grads) if w else None for w in wanted]
