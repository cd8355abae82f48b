"""ops.mixed_cell and ops.relu_conv_bns on the parameters and buffers of torch's layers: one call for all.

Notation: N images, C channels, E edges, K candidates, B BatchNorms.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastdarts.kernels.graph import Graph
from fastdarts.ops import backend as backends
from fastdarts.ops.batch_norm import BatchNorm, recomputed_to_here
from fastdarts.ops.mixed_cell import mixed_cell
from fastdarts.ops.relu_conv_bn import relu_conv_bns
from fastdarts.ops.sync import Sync


def mixed_cell_of_layers(
    convolutions: Sequence[nn.Conv2d],
    norms: Sequence[BatchNorm],
    inputs: Sequence[Tensor],
    ops: Tensor,
    edges: Tensor | None,
    *,
    graph: Graph,
    partial_channels: int = 1,
    backend: str = "auto",
    sync: Sync | None = None,
) -> Tensor:
    """Call ops.mixed_cell, whose arguments the others are; update running statistics and counters as the layers do.

    convolutions  all of the graph, in the order of `graph.convolutions`
    norms         all BatchNorms of the graph, in its order. They share mode, settings, and which buffers they have; those
                  without affine parameters scale by 1 where others have them
    """
    first = norms[0] if norms else None
    training = first is not None and first.training
    means, variances = ([getattr(n, name) for n in norms] if _has(first, name) else [] for name in BUFFERS)
    running = (torch.cat(means), torch.cat(variances)) if means else None
    out = mixed_cell(
        inputs,
        ops,
        edges,
        torch.cat([c.weight.reshape(-1) for c in convolutions]) if convolutions else inputs[0].new_empty(0),
        running,
        None,
        affine=_affine(norms),
        graph=graph,
        partial_channels=partial_channels,
        training=training,
        momentum=0.1 if first is None or first.momentum is None else first.momentum,
        eps=1e-5 if first is None else first.eps,
        backend=backend,
        sync=sync,
    )
    if running is not None and training:
        sizes = [len(m) for m in means]
        torch._foreach_copy_(means, running[0].split(sizes))
        torch._foreach_copy_(variances, running[1].split(sizes))
        _count(norms)
    return out


def relu_conv_bns_of_layers(
    convolutions: Sequence[Sequence[nn.Conv2d]],
    norms: Sequence[BatchNorm],
    xs: Sequence[Tensor],
    *,
    backend: str = "auto",
    sync: Sync | None = None,
) -> tuple[Tensor, ...]:
    """Call ops.relu_conv_bns, whose arguments the others are; update running statistics and counters as the layers do.

    convolutions, norms  of each layer; norms as in mixed_cell_of_layers, with affine parameters or all without
    """
    first = norms[0]
    running, affines = ([tuple(getattr(n, name) for name in names) for n in norms] for names in (BUFFERS, AFFINE))
    outs = relu_conv_bns(
        xs,
        [[conv.weight for conv in each] for each in convolutions],
        running if _has(first, BUFFERS[0]) else None,
        affines=affines if _has(first, AFFINE[0]) else None,
        training=first.training,
        momentum=0.1 if first.momentum is None else first.momentum,
        eps=first.eps,
        backend=backend,
        sync=sync,
    )
    if first.training and _has(first, BUFFERS[0]):
        _count(norms)
    return outs


def _affine(norms: Sequence[BatchNorm]) -> Tensor | None:
    """Return the scales and shifts of all norms (2, B * C), or None if none has any."""
    like = next((n.weight for n in norms if _has(n, "weight")), None)
    if like is None:
        return None
    scales = [n.weight if _has(n, "weight") else like.new_ones(n.num_features) for n in norms]
    shifts = [n.bias if _has(n, "bias") else like.new_zeros(n.num_features) for n in norms]
    return torch.cat([*scales, *shifts]).view(2, -1)


def _count(norms: Sequence[BatchNorm]) -> None:
    """Count a forward in training."""
    counters = [n.num_batches_tracked for n in norms if n.num_batches_tracked is not None]
    if counters:
        torch._foreach_add_(counters, 1)
    recomputed_to_here()


AFFINE, BUFFERS = ("weight", "bias"), ("running_mean", "running_var")


def _has(norm: BatchNorm | None, name: str) -> bool:
    return norm is not None and getattr(norm, name) is not None


def kernels_of(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the backend that computes an op there: "cpu", "triton", or "definition", which stands for the modules."""
    return backends.choose(op, backends.offered(op, backend), device, dtype)


def fits(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a fused kernel runs there."""
    return kernels_of(op, backend, device, dtype) != "definition"
