"""All mixed edges of a cell as one op: every candidate of every edge, weighted and summed into the cell's nodes.

Notation: N images, C channels of a node, k the divisor of partial channels, Cq = C/k, H W pixels, s the stride of the
edges that leave the inputs, m = N*(H/s)*(W/s), E edges, K candidates of the longest list, B BatchNorms.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import repeat
from math import prod
from operator import add
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts import native
from fastdarts.kernels import mixed_cell_plan
from fastdarts.kernels.arguments import MixedCell, MixedCellBackward, MixedCellGradients, MixedCellResults
from fastdarts.kernels.graph import DENSE, DILATED, KERNEL, Candidate, Edge, Graph
from fastdarts.kernels.mixed_cell_launches import beyond
from fastdarts.ops import backend as backends
from fastdarts.ops import batch_norm, relu_conv_bn
from fastdarts.ops.batch_norm import Running
from fastdarts.ops.schema import Op
from fastdarts.ops.sync import Sync, handle, ranks_of

FORWARD = Op("mixed_cell", MixedCell, MixedCellResults)
BACKWARD = Op("mixed_cell_backward", MixedCellBackward, MixedCellGradients)


class Constants(NamedTuple):
    """The arguments of mixed_cell that are not differentiable, in the definition's order."""

    running: Running | None
    channels: Tensor | None
    graph: Graph
    partial_channels: int
    training: bool
    momentum: float
    eps: float
    sync: Sync | None


def mixed_cell(
    inputs: Sequence[Tensor],
    ops: Tensor,
    edges: Tensor | None,
    weights: Tensor,
    running: Running | None,
    channels: Tensor | None,
    *,
    affine: Tensor | None = None,
    graph: Graph,
    partial_channels: int = 1,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    backend: str = "auto",
    sync: Sync | None = None,
) -> Tensor:
    """Compute the nodes of a cell: node j = sum over its edges e from states i of edges_e * sum_k ops_ek * o_ek(state_i).

    (DARTS, Liu et al., ICLR 2019, Eq. 2; with partial channels and edge weights PC-DARTS, Xu et al., ICLR 2020, Eq. 2, 3.)

    inputs    states 0, 1, ...: (N, C, H, W) each, floating point, one shape; H and W even if edges stride
    ops       (E, K): the weight of candidate k on edge e, any real number; columns past an edge's own list are ignored
    edges     (E,) or None (all 1): the weight of an edge, bypassed channels included. (E, N): one for each image, without a
              gradient, as drop path's factors (Larsson et al., ICLR 2017)
    weights   (n,): all convolutions, in the order of `graph.convolutions(Cq)`, concatenated
    running   None, or the packed running means and variances of all BatchNorms: (B * Cq,) each, B = graph.norms. Updated
              in place, once, when training
    channels  int64 (E, Cq): the state's channels that pass through each edge's candidates, distinct in each row; they keep
              their positions. None: the first Cq, and the edge's channels are shuffled over k groups, as in PC-DARTS' code
              (processed channel p becomes channel p*k, bypassed channel g*Cq + p becomes channel p*k + g)
    affine    None, or scale and shift of all BatchNorms, in running's order: (2, B * Cq)
    graph     the cell's edges and their candidates
    partial_channels  k: the other channels bypass the candidates (2x2 max-pooled under stride 2)
    training  True: batch statistics. False: the running ones, or, without them, batch statistics
    backend   "auto", "cpu" (C++: float32, float64), "triton" (NVIDIA GPUs: float32, bfloat16, float16; at most 4 inputs, Cq at
              most 128) or "definition"
    sync      sums batch statistics over the ranks that share a batch, once for all edges that are ready together; all
              ranks have as many images

    All tensors are on one device, all but `channels` of one dtype (under autocast: of any floating-point ones). Under autocast
    a native backend casts inputs and weights to autocast's dtype, which the result has too, and keeps the dtypes of ops, edges,
    affine and running statistics.
    Returns (N, nodes * C, H/s, W/s), the concatenated nodes; channels_last from a native backend, which takes inputs
    in any layout. No backward reads the output: it may be modified in place. Differentiable twice in inputs, ops, edges (E,),
    weights and affine. Raises ValueError for arguments that do not fit and BackendUnavailable.
    """
    constants = Constants(running, channels, graph, partial_channels, training, momentum, eps, sync)
    tensors = list(inputs), ops, edges, weights, affine
    _check(*tensors, constants)
    x = inputs[0]
    return backends.run("mixed_cell", backend, x.device, backends.arithmetic(x), *tensors, constants)


def channel_shuffle(x: Tensor, k: int) -> Tensor:
    """Interleave k groups of channels: output channel c is input channel (c mod k) * (C/k) + c div k. x: (N, C, H, W)."""
    N, C, H, W = x.shape
    return x.reshape(N, k, C // k, H, W).transpose(1, 2).reshape(N, C, H, W)


def definition(
    inputs: Sequence[Tensor],
    ops: Tensor,
    edges: Tensor | None,
    weights: Tensor,
    affine: Tensor | None,
    running: Running | None,
    channels: Tensor | None,
    graph: Graph,
    partial_channels: int,
    training: bool,
    momentum: float,
    eps: float,
    sync: Sync | None = None,
) -> Tensor:
    """mixed_cell in plain PyTorch, at any dtype on any device; same arguments."""
    Cq = inputs[0].shape[1] // partial_channels
    parts = _Parts(weights, affine, running, graph, Cq, (training, momentum, eps, sync))
    rows, betas = (
        ops.unbind(),
        None if edges is None else (edges if edges.dim() == 1 else edges[..., None, None, None]).unbind(),
    )
    states = list(inputs)
    for e, edge in enumerate(graph.edges):
        out = _edge(parts, edge, states[edge.source], rows[e], None if channels is None else channels[e], partial_channels)
        if betas is not None:
            out = betas[e] * out
        if len(states) == graph.inputs + edge.node:  # the node's first edge
            states.append(out)
        else:
            states[-1] = states[-1] + out
    return torch.cat(states[graph.inputs :], dim=1)


class _Parts:
    """Iterates over the packed weights, convolution by convolution, and over what BatchNorms have, one by one."""

    def __init__(
        self,
        weights: Tensor,
        affine: Tensor | None,
        running: Running | None,
        graph: Graph,
        C: int,
        norm: tuple[bool, float, float, Sync | None],
    ) -> None:
        shapes = graph.convolutions(C)
        pieces = weights.split([prod(shape) for shape in shapes])  # once: its gradient is one concatenation
        self.weights = iter([piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)])
        self.running = repeat(None) if running is None else zip(*(r.split(C) for r in running), strict=True)
        self.affine = repeat((None, None)) if affine is None else zip(*(a.split(C) for a in affine.unbind()), strict=True)
        self.norm = norm  # training, momentum, eps, sync

    def convolve(self, x: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> Tensor:
        return F.conv2d(x, next(self.weights), None, stride, padding, dilation, groups)

    def normalise(self, x: Tensor) -> Tensor:
        return batch_norm.batch_norm(x, next(self.running), *self.norm, *next(self.affine))

    def separable(self, x: Tensor, kernel: int, stride: int, dilation: int = 1) -> Tensor:
        """Apply ReLU, depthwise convolution, 1x1 convolution, BN."""
        x = self.convolve(F.relu(x), stride, dilation * (kernel // 2), dilation, groups=x.shape[1])
        return self.normalise(self.convolve(x))

    def factorized_reduce(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        y = torch.cat([relu_conv_bn.halving_convolution(x, next(self.weights), offset) for offset in (0, 1)], dim=1)
        return self.normalise(y)


def _edge(parts: _Parts, edge: Edge, x: Tensor, weights: Tensor, chosen: Tensor | None, k: int) -> Tensor:
    """Map x (N, C, H, W), weights (K,), chosen int64 (Cq,) or None to (N, C, H/s, W/s), before the edge's weight."""

    def around(bypass: Tensor) -> Tensor:
        return F.max_pool2d(bypass, 2) if edge.stride == 2 else bypass

    if k == 1:
        return _mix(parts, edge, x, weights)
    if chosen is not None:
        return around(x).index_copy(1, chosen, _mix(parts, edge, x.index_select(1, chosen), weights))
    Cq = x.shape[1] // k
    return channel_shuffle(torch.cat([_mix(parts, edge, x[:, :Cq], weights), around(x[:, Cq:])], dim=1), k)


def _mix(parts: _Parts, edge: Edge, x: Tensor, weights: Tensor) -> Tensor:
    """Sum the edge's weighted candidates on x (N, Cq, H, W) from left to right."""
    listed = zip(weights.unbind(), edge.candidates, strict=False)  # a row may be padded to the longest list of the cell
    return reduce(add, (w * _apply(parts, candidate, x, edge.stride) for w, candidate in listed))


def _apply(parts: _Parts, candidate: Candidate, x: Tensor, stride: int) -> Tensor:
    """Apply one candidate to x (N, Cq, H, W), unweighted."""
    kernel = KERNEL.get(candidate, 0)
    if candidate == Candidate.NONE:
        return x[:, :, ::stride, ::stride].mul(0.0)
    if candidate == Candidate.SKIP:
        return x if stride == 1 else parts.factorized_reduce(x)
    if candidate == Candidate.MAX_POOL_3:
        return parts.normalise(F.max_pool2d(x, 3, stride, padding=1))
    if candidate == Candidate.PLAIN_MAX_POOL_3:
        return F.max_pool2d(x, 3, stride, padding=1)
    if candidate in (Candidate.AVG_POOL_3, Candidate.PLAIN_AVG_POOL_3):
        pooled = F.avg_pool2d(x, 3, stride, padding=1, count_include_pad=False)
        return parts.normalise(pooled) if candidate == Candidate.AVG_POOL_3 else pooled
    if candidate in DENSE:
        return parts.normalise(parts.convolve(F.relu(x), padding=kernel // 2))
    if candidate in DILATED:
        return parts.separable(x, kernel, stride, dilation=2)
    return parts.separable(parts.separable(x, kernel, stride), kernel, 1)


@FORWARD.fake
def _fake(a: MixedCell) -> MixedCellResults:
    x, graph = a.inputs[0], Graph.decode(a.graph)
    N, C, H, W = x.shape
    size = N, graph.nodes * C, H // graph.stride, W // graph.stride
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    statistics = x.new_empty(2, graph.norms * (C // a.partial_channels), dtype=torch.float64)
    if x.device.type == "cuda":
        shape = tuple(map(int, x.shape))  # makes dynamic shapes static, as for the C++ kernel below
        length = mixed_cell_plan.saved_numbers(tuple(a.graph), shape, a.partial_channels, a.affine is not None)
    else:
        length = native.required().mixed_cell_saved(a.graph, list(x.shape), a.partial_channels, x.element_size())
    return MixedCellResults(out, statistics, x.new_empty(length))


@BACKWARD.fake
def _fake_backward(a: MixedCellBackward) -> MixedCellGradients:
    grad_inputs = [torch.empty_like(x, memory_format=torch.channels_last) for x in a.inputs] if a.need_inputs else []
    grad_ops, grad_edges = (a.ops.new_empty(size if a.need_ops else 0) for size in (a.ops.shape, a.ops.shape[:1]))
    grad_weights = a.weights.new_empty(a.weights.shape if a.need_weights else 0)
    affine = a.weights.new_empty(0) if a.affine is None or not a.need_weights else torch.empty_like(a.affine)
    return MixedCellGradients(grad_inputs, grad_ops, grad_edges, grad_weights, affine)


@FORWARD.cuda
def _on_gpu(a: MixedCell) -> MixedCellResults:
    from fastdarts.kernels import mixed_cell as kernels  # not above: Triton may be missing

    return kernels.forward(a, ranks_of(a.sync))


@BACKWARD.cuda
def _backward_on_gpu(a: MixedCellBackward) -> MixedCellGradients:
    from fastdarts.kernels import mixed_cell as kernels

    return kernels.backward(a, ranks_of(a.sync))


def backward_scratch(a: MixedCellBackward) -> int:
    """Return the bytes of workspace of a backward on a GPU, without its results. Computes nothing."""
    flags = mixed_cell_plan.flags_of(a, a.batch_statistics, a.sync != 0)
    needs = a.need_inputs, a.need_ops, a.need_weights
    x = a.inputs[0]
    return mixed_cell_plan.work_numbers(tuple(a.graph), tuple(x.shape), a.partial_channels, flags, needs) * x.element_size()


class _MixedCell(torch.autograd.Function):
    """The registered op and its gradients; inputs are channels_last-contiguous, the other tensors contiguous."""

    @staticmethod
    def forward(
        ctx: Any,
        constants: Constants,
        ops: Tensor,
        edges: Tensor | None,
        weights: Tensor,
        affine: Tensor | None,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return out and statistics. constants.running is None if the batch's statistics normalise."""
        c = constants
        mean, var = (None, None) if c.running is None else c.running
        rest = c.graph.encode(), c.partial_channels, c.eps, handle(c.sync)
        tensors = inputs, ops, edges, weights, affine, mean, var, c.channels
        out, statistics, saved = torch.ops.fastdarts.mixed_cell(*tensors, *rest)
        ctx.save_for_backward(ops, edges, weights, affine, *inputs, c.channels, statistics, saved)
        ctx.constants, ctx.batch_statistics = c._replace(running=None, channels=None), c.running is None
        ctx.mark_non_differentiable(statistics)
        return out, statistics

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        ops, edges, weights, affine, *inputs, channels, statistics, saved = ctx.saved_tensors
        _, *wanted = ctx.needs_input_grad  # of ops, edges, weights, affine and each input
        c = ctx.constants
        if torch.is_grad_enabled():
            running = None if ctx.batch_statistics else tuple(statistics.to(ops.dtype))
            c = c._replace(running=running, channels=channels, training=False, momentum=0.0)

            def again(ops: Tensor, edges: Tensor | None, weights: Tensor, affine: Tensor | None, *inputs: Tensor) -> Tensor:
                return definition(inputs, ops, edges, weights, affine, *c)

            tensors = [ops, edges, weights, affine, *inputs]
            return None, *batch_norm.through_definition("mixed_cell", again, tensors, wanted, grad)
        need_ops, need_weights, need_inputs = any(wanted[:2]), any(wanted[2:4]), any(wanted[4:])
        args = MixedCellBackward(
            grad.contiguous(memory_format=torch.channels_last),
            inputs,
            ops,
            edges,
            weights,
            affine,
            statistics,
            saved,
            channels,
            c.graph.encode(),
            c.partial_channels,
            c.eps,
            ctx.batch_statistics,
            need_inputs,
            need_ops,
            need_weights,
            handle(c.sync),
        )
        grad_inputs, *of_weights = torch.ops.fastdarts.mixed_cell_backward(*args)
        grads = (g if w else None for g, w in zip(of_weights, wanted, strict=False))  # of ops, edges, weights, affine
        return None, *grads, *(grad_inputs or [None] * len(inputs))


def _registered(
    inputs: list[Tensor], ops: Tensor, edges: Tensor | None, weights: Tensor, affine: Tensor | None, constants: Constants
) -> Tensor:
    dtype, c = backends.arithmetic(inputs[0]), constants
    laid_out = [x.to(dtype).contiguous(memory_format=torch.channels_last) for x in inputs]
    ops, weights = ops.contiguous(), weights.to(dtype).contiguous()
    edges, affine, channels = (None if t is None else t.contiguous() for t in (edges, affine, c.channels))
    fixed = c._replace(running=None if c.training else c.running, channels=channels)
    out, statistics = _MixedCell.apply(fixed, ops, edges, weights, affine, *laid_out)
    if c.training and c.running is not None:
        batch_norm.update_running(c.running, statistics, out.numel() // out.shape[1], c.momentum, c.sync)
    return out


def _by_definition(
    inputs: list[Tensor], ops: Tensor, edges: Tensor | None, weights: Tensor, affine: Tensor | None, constants: Constants
) -> Tensor:
    return definition(inputs, ops, edges, weights, affine, *constants)


def _beyond_triton(
    inputs: list[Tensor], ops: Tensor, edges: Tensor | None, weights: Tensor, affine: Tensor | None, constants: Constants
) -> str | None:
    return beyond(len(inputs), inputs[0].shape[1] // constants.partial_channels)


backends.register(
    "mixed_cell",
    backends.Backend("cpu", backends.native_cpu(torch.float32, torch.float64, op="mixed_cell"), _registered),
    backends.Backend("triton", backends.triton(torch.float32, torch.bfloat16, torch.float16), _registered, _beyond_triton),
    backends.Backend("definition", backends.anything, _by_definition),
)


def _check(
    inputs: Sequence[Tensor],
    ops: Tensor,
    edges: Tensor | None,
    weights: Tensor,
    affine: Tensor | None,
    constants: Constants,
) -> None:
    """Raise ValueError, saying what was given, unless the arguments are as mixed_cell documents them."""
    running, channels, graph, k, training, momentum, eps, _ = constants
    if len(inputs) != graph.inputs:
        raise ValueError(f"the graph has {graph.inputs} inputs, got {len(inputs)}")
    x, E, s = inputs[0], len(graph.edges), graph.stride
    if x.dim() != 4 or not x.is_floating_point() or not x.numel():
        raise ValueError(f"inputs must be floating point (N, C, H, W) and not empty, got {x.dtype} {tuple(x.shape)}")
    N, C, H, W = x.shape
    if k < 1 or C % k:
        raise ValueError(f"partial_channels = {k} must divide the inputs' {C} channels")
    if s == 2 and (H % 2 or W % 2):
        raise ValueError(f"edges with stride 2 halve the image: its sides must be even, got {H} x {W} pixels")
    Cq = C // k
    if s == 2 and Cq % 2 and any(e.stride == 2 and Candidate.SKIP in e.candidates for e in graph.edges):
        raise ValueError(f"SKIP under stride 2 halves its channels between two convolutions: C/k = {Cq} is odd")
    if ops.dim() != 2 or ops.shape[0] != E or ops.shape[1] < graph.longest:
        raise ValueError(f"ops must be ({E}, K) with K at least {graph.longest}, got {tuple(ops.shape)}")
    shapes: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        *(("inputs", state, (N, C, H, W)) for state in inputs),
        ("ops", ops, tuple(ops.shape)),
        ("edges", edges, (E,) if edges is None or edges.dim() != 2 else (E, N)),
        ("weights", weights, (graph.size(Cq),)),
        ("affine", affine, (2, graph.norms * Cq)),
    ]
    for name, tensor, shape in shapes:
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}")
        backends.check_alike(name, tensor, x)
    if edges is not None and edges.dim() == 2 and edges.requires_grad:
        raise ValueError("edges (E, N), a weight for each image, get no gradient: give a tensor that does not require one")
    if channels is not None:
        if k == 1:
            raise ValueError("partial_channels = 1 uses all channels: channels must be None")
        if channels.dtype != torch.int64 or tuple(channels.shape) != (E, Cq) or channels.device != x.device:
            got = f"{channels.dtype} {tuple(channels.shape)} on {channels.device}"
            raise ValueError(f"channels must be int64 ({E}, {Cq}) on {x.device}, got {got}")
    batch_norm.check(running, graph.norms * Cq, weights, training, N * (H // s) * (W // s), momentum, eps)
