"""The mixed cell on GPUs, in Triton: executes the launches of mixed_cell_plan.py on the tensors of a call.

What is computed is said in fastdarts/ops/mixed_cell.py, how, in mixed_cell_plan.py (launches) and in mixed_cell_forward.py,
mixed_cell_sums.py, mixed_cell_backward.py and mixed_cell_weights.py (kernels). Memory is NHWC in the tensors' own dtype,
arithmetic float32, a BN's statistics are merged in float64. Nothing waits for the device and all sizes come from shapes, so
that a call can be captured in a CUDA graph once it ran outside of one (which compiles the kernels and puts the table on the
device). With a Sync, ranks exchange the sums of BNs between launches (`_exchange`), and the launches, those of CUDA's kernels
too, are the same but for one more of `factors` after each exchange of statistics.
"""

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from fastdarts.kernels import (
    launch,
    mixed_cell_backward,
    mixed_cell_cuda,
    mixed_cell_forward,
    mixed_cell_sums,
    mixed_cell_weights,
    ranks,
)
from fastdarts.kernels.mixed_cell_plan import Plan
from fastdarts.kernels.mixed_cell_table import MOST_INPUTS, Call, Launch, Needs, padded
from fastdarts.logs import say_once
from fastdarts.ops.batch_norm import Sync
from fastdarts.ops.graph import Graph

KERNELS = {
    name: getattr(module, name)
    for module, names in (
        (mixed_cell_forward, ("separable", "dense", "pool_sums", "factors", "places", "node")),
        (mixed_cell_backward, ("product", "middle", "pool_gradient", "state_gradient")),
        (mixed_cell_sums, ("sums", "mix")),
        (mixed_cell_weights, ("matrix_gradient", "tap_gradient", "dense_gradient", "collect")),
    )
    for name in names
}
Shape = tuple[int, int, int, int]


@cache  # for good: a captured CUDA graph goes on reading the table
def _planned(
    code: tuple[int, ...],
    shape: Shape,
    partial_channels: int,
    flags: tuple[bool, bool, bool, bool],
    needs: tuple[bool, bool, bool] | None,
    device: torch.device,
) -> tuple[Plan, Tensor]:
    """A plan, and its table on the device; flags are chosen, batch, weighted, shared."""
    plan = Plan(Call(Graph.decode(code), shape, partial_channels, *flags), None if needs is None else Needs(*needs))
    return plan, torch.tensor(plan.table or [0], dtype=torch.int64, device=device)


def _execute(plan: Plan, table: Tensor, x: Tensor, names: dict[str, Any], sync: Sync | None) -> None:
    """Each launch of the plan, its arguments found by name, and what ranks exchange after it."""
    call, target = plan.call, launch.target_of(x.device)
    sizes = {"H": plan.H, "W": plan.W, "Ho": plan.Ho, "Wo": plan.Wo, "m": plan.m, "numbers": plan.numbers}
    constants = {
        "C": plan.C,
        "CQ": plan.Cq,
        "BC": padded(plan.Cq),
        "BALL": padded(plan.C),
        "NODES": plan.graph.nodes,
        "NORMS": plan.graph.norms,
        "CHOSEN": call.chosen,
        "BATCH": call.batch,
        "WEIGHTED": call.weighted,
    }
    common = {"p_table": table} | sizes | constants | names
    with launch.on(x.device):
        for one in plan.launches:
            _start(one, plan.numbers, x.dtype, x.device, target, common | one.values)
            if sync is not None and one.exchanged:
                _exchange(one, plan, table, names, sync)


def _start(one: Launch, numbers: int, dtype: torch.dtype, device: torch.device, target: str, given: dict[str, Any]) -> None:
    """One launch, of Triton's kernel or CUDA's."""
    kernel = KERNELS[one.kernel]
    settings = launch.settings(f"mixed_cell.{one.kernel}", dtype, target)
    programs = -(-numbers // settings["TILE"]) if one.programs < 0 else one.programs
    if launch.backend(f"mixed_cell.{one.kernel}", dtype, target) == "cuda":
        why_not = mixed_cell_cuda.refusal(one.kernel, dtype, given)
        if why_not is None:
            mixed_cell_cuda.launch(one.kernel, dtype, programs, device, given)
            return
        say_once(f"mixed_cell.{one.kernel}: Triton's kernel runs, not CUDA's: {why_not}")
    kernel[(programs,)](**{name: given[name] for name in kernel.arg_names if name in given}, **settings)


def _exchange(one: Launch, plan: Plan, table: Tensor, names: dict[str, Any], sync: Sync) -> None:
    """Put what holds for the images of all ranks in the place of what a launch left behind for this rank's."""
    listed = table[one.exchanged.start : one.exchanged.stop]
    if one.kernel == "factors":  # mean and variance
        rows = names["p_result"].view(2, -1, plan.Cq)
        rows.index_copy_(1, listed, ranks.statistics(rows.index_select(1, listed), sync))
    elif one.kernel == "mix":  # c0 and c1 of dL/dy; the gradients of ops and edges are the rank's own already
        rows = names["p_coefficients"].view(-1, 3, plan.Cq)[:, 1:]
        rows.index_copy_(0, listed, ranks.mean(rows.index_select(0, listed), sync))
    else:  # the sums of `middle`: all in the first part
        parts = names["p_middles"].view(-1, plan.parts, 2, plan.Cq)
        sums = ranks.mean(parts.index_select(0, listed).double().sum(1), sync)
        parts.index_fill_(0, listed, 0.0)
        parts[:, 0].index_copy_(0, listed, sums.float())


def _inputs(name: str, tensors: Sequence[Tensor], spare: Tensor) -> dict[str, Tensor]:
    """The pointers of as many inputs as the kernels have; `spare` where there are fewer."""
    return {f"{name}{i}": tensors[i] if i < len(tensors) else spare for i in range(MOST_INPUTS)}


def _common(
    plan: Plan,
    table: Tensor,
    inputs: Sequence[Tensor],
    ops: Tensor,
    edges: Tensor | None,
    weights: Tensor,
    saved: Tensor,
    channels: Tensor | None,
) -> dict[str, Any]:
    """What both directions' kernels read. A pointer that a call has no tensor for is one that nobody follows."""
    numbers = plan.graph.norms * 3 * plan.Cq
    norms = saved.narrow(0, plan.norms_at, numbers * 4 // saved.element_size()).view(torch.float32)
    places = table if channels is None else channels.new_empty((len(plan.graph.edges), plan.C), dtype=torch.int32)
    return {
        **_inputs("p_x", inputs, inputs[0]),
        "p_saved": saved,
        "p_ops": ops,
        "p_edges": ops if edges is None else edges,
        "p_weights": weights,
        "p_channels": table if channels is None else channels,
        "p_places": places,
        "p_norms": norms,
        "columns": ops.shape[1],
        "COLUMNS": padded(ops.shape[1]),
    }


def forward(
    inputs: Sequence[Tensor],
    ops: Tensor,
    edges: Tensor | None,
    weights: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    channels: Tensor | None,
    graph: Sequence[int],
    partial_channels: int,
    eps: float,
    sync: Sync | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The registered op: inputs are channels_last-contiguous, the other tensors contiguous but for running statistics.

    sync  where there are no running statistics, the batch's are those of all its ranks, which have as many images each
    """
    x, batch = inputs[0], running_mean is None
    flags = channels is not None, batch, edges is not None, batch and sync is not None
    plan, table = _planned(tuple(graph), tuple(x.shape), partial_channels, flags, None, x.device)
    size = plan.N, plan.graph.nodes * plan.C, plan.Ho, plan.Wo
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    saved = x.new_empty(plan.saved)
    numbers = plan.graph.norms * plan.Cq
    statistics = x.new_empty((2, numbers), dtype=torch.float64)
    mean, var = statistics if running_mean is None or running_var is None else (running_mean, running_var)
    names = _common(plan, table, inputs, ops, edges, weights, saved, channels) | {
        "p_out": out,
        "p_statistics": x.new_empty(numbers * plan.parts * 3 if plan.call.batch else 0, dtype=torch.float32),
        "p_mean": mean.contiguous(),
        "p_var": var.contiguous(),
        "p_result": statistics,
        "eps": eps,
    }
    _execute(plan, table, x, names, sync)
    return out, statistics, saved


def backward(
    grad: Tensor,
    inputs: Sequence[Tensor],
    ops: Tensor,
    edges: Tensor | None,
    weights: Tensor,
    statistics: Tensor,
    saved: Tensor,
    channels: Tensor | None,
    graph: Sequence[int],
    partial_channels: int,
    eps: float,
    batch_statistics: bool,
    need_inputs: bool,
    need_ops: bool,
    need_weights: bool,
    sync: Sync | None = None,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """The registered backward; grad is channels_last-contiguous, sync is the forward's."""
    x, needs = inputs[0], (need_inputs, need_ops, need_weights)
    flags = channels is not None, batch_statistics, edges is not None, batch_statistics and sync is not None
    plan, table = _planned(tuple(graph), tuple(x.shape), partial_channels, flags, needs, x.device)
    grad_inputs = [torch.empty_like(one, memory_format=torch.channels_last) for one in inputs] if need_inputs else []
    grad_ops, grad_edges = (ops.new_empty(size if need_ops else 0) for size in (ops.shape, ops.shape[:1]))
    grad_weights = weights.new_empty(weights.shape if need_weights else 0)

    def sums(*sizes: int) -> Tensor:
        return x.new_empty(prod(sizes), dtype=torch.float32)

    work = x.new_empty(plan.work)
    names = _common(plan, table, inputs, ops, edges, weights, saved, channels) | {
        **_inputs("p_dx", grad_inputs, work),
        "p_grad": grad,
        "p_work": work,
        "p_coefficients": sums(plan.graph.norms, 3, plan.Cq),
        "p_sums": sums(sum(map(len, plan.sums)), plan.parts, 2, plan.Cq),
        "p_middles": sums(plan.slots, plan.parts, 2, plan.Cq),
        "p_parts": sums(plan.learnt, plan.numbers),
        "p_grad_ops": grad_ops,
        "p_grad_edges": grad_edges,
        "p_grad_weights": grad_weights,
    }
    _execute(plan, table, x, names, sync)
    return grad_inputs, grad_ops, grad_edges, grad_weights
