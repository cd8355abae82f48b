"""The mixed cell on GPUs, in Triton: executes the launches of mixed_cell_plan.py on the tensors of a call.

fastdarts/ops/mixed_cell.py holds the definition, mixed_cell_plan.py the launches, mixed_cell_forward.py, mixed_cell_sums.py,
mixed_cell_backward.py and mixed_cell_weights.py the kernels. Memory is NHWC in the tensors' own dtype, arithmetic float32; a
BN's statistics are merged in float64. Nothing waits for the device and all sizes come from shapes, so a call can be captured
in a CUDA graph after one call outside (which compiles the kernels and puts the table on the device). With a Sync, ranks
exchange the sums of BNs between launches (`_exchange`); the launches are the same, CUDA's included, except for one more
`bn_scale_shift` after each exchange of statistics.
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
from fastdarts.kernels.arguments import MixedCell, MixedCellBackward, MixedCellGradients, MixedCellResults
from fastdarts.kernels.graph import Graph
from fastdarts.kernels.mixed_cell_launches import MOST_INPUTS, Call, Launch, Needs, padded
from fastdarts.kernels.mixed_cell_plan import Flags, MixedCellPlan, flags_of
from fastdarts.kernels.ranks import Sync
from fastdarts.logs import say_once

KERNELS = {
    name: getattr(module, name)
    for module, names in (
        (mixed_cell_forward, ("separable", "dense", "pool_sums", "bn_scale_shift", "channel_inverse", "node")),
        (mixed_cell_backward, ("product", "bn_backward_inner", "pool_gradient", "state_gradient")),
        (mixed_cell_sums, ("grad_sums", "mix_weights", "affine_gradient")),
        (mixed_cell_weights, ("matrix_gradient", "tap_gradient", "dense_gradient", "reduce_parts")),
    )
    for name in names
}
Shape = tuple[int, int, int, int]


@cache  # kept forever: a captured CUDA graph keeps reading the table
def _planned(
    code: tuple[int, ...],
    shape: Shape,
    partial_channels: int,
    flags: Flags,
    needs: tuple[bool, bool, bool] | None,
    device: torch.device,
) -> tuple[MixedCellPlan, Tensor]:
    """Return a plan, and its table on the device."""
    plan = MixedCellPlan(Call(Graph.decode(code), shape, partial_channels, *flags), None if needs is None else Needs(*needs))
    return plan, torch.tensor(plan.table or [0], dtype=torch.int64, device=device)


def _execute(plan: MixedCellPlan, table: Tensor, x: Tensor, names: dict[str, Any], sync: Sync | None) -> None:
    """Start each launch of the plan, with arguments by name, and exchange sums between ranks after it."""
    target = launch.target_of(x.device)
    sizes = {"H": plan.H, "W": plan.W, "Ho": plan.Ho, "Wo": plan.Wo, "m": plan.m, "numbers": plan.numbers}
    common = {"p_table": table} | sizes | plan.constants | names
    with launch.on(x.device):
        for one in plan.launches:
            _start(one, plan.numbers, x.dtype, x.device, target, common | one.values)
            if sync is not None and one.exchanged:
                _exchange(one, plan, table, names, sync)


def _start(one: Launch, numbers: int, dtype: torch.dtype, device: torch.device, target: str, args: dict[str, Any]) -> None:
    """Start one launch: the Triton kernel or the CUDA kernel."""
    kernel = KERNELS[one.kernel]
    channels = args["BC"] if "BC" in kernel.arg_names else None
    settings = launch.widened(launch.settings(f"mixed_cell.{one.kernel}", dtype, target), channels)
    programs = -(-numbers // settings["TILE"]) if one.programs < 0 else one.programs
    if launch.backend(f"mixed_cell.{one.kernel}", dtype, target) == "cuda":
        named = mixed_cell_cuda.arguments(args)
        why_not = mixed_cell_cuda.refusal(one.kernel, dtype, named)
        if why_not is None:
            mixed_cell_cuda.launch(one.kernel, dtype, programs, device, named)
            return
        say_once(f"mixed_cell.{one.kernel}: running Triton's kernel instead of CUDA's: {why_not}")
    kernel[(programs,)](**{name: args[name] for name in kernel.arg_names if name in args}, **settings)


def _exchange(one: Launch, plan: MixedCellPlan, table: Tensor, names: dict[str, Any], sync: Sync) -> None:
    """Replace the sums that a launch took over this rank's images by those over the images of all ranks."""
    listed = table[one.exchanged.start : one.exchanged.stop]
    if one.kernel == "bn_scale_shift":  # mean and variance
        rows = names["p_result"].view(2, -1, plan.Cq)
        rows.index_copy_(1, listed, ranks.statistics(rows.index_select(1, listed), sync))
    elif one.kernel == "mix_weights":  # c0 and c1 of dL/dy; the gradients of ops and edges are the rank's own already
        rows = names["p_coefficients"].view(-1, 3, plan.Cq)[:, 1:]
        rows.index_copy_(0, listed, ranks.mean(rows.index_select(0, listed), sync))
    else:  # the sums of the middle BNs: all in the first part
        parts = names["p_middles"].view(-1, plan.parts, 2, plan.Cq)
        sums = ranks.mean(parts.index_select(0, listed).double().sum(1), sync)
        parts.index_fill_(0, listed, 0.0)
        parts[:, 0].index_copy_(0, listed, sums.float())


def _inputs(tensors: Sequence[Tensor], spare: Tensor) -> tuple[Tensor, ...]:
    """Return a tensor for each input that the kernels can take; missing ones become `spare`."""
    return *tensors, *(spare for _ in range(MOST_INPUTS - len(tensors)))


def _common(plan: MixedCellPlan, table: Tensor, a: MixedCell | MixedCellBackward, saved: Tensor) -> dict[str, Any]:
    """Return the arguments of both directions' kernels. A pointer without a tensor in this call is a dummy, never read."""
    numbers = plan.graph.norms * 3 * plan.Cq * 4 // saved.element_size()
    norms, scaled = (saved.narrow(0, at, numbers).view(torch.float32) for at in (plan.norms_at, plan.scaled_at))
    inverse = table if a.channels is None else a.channels.new_empty((len(plan.graph.edges), plan.C), dtype=torch.int32)
    return {
        "p_inputs": _inputs(a.inputs, a.inputs[0]),
        "p_saved": saved,
        "p_ops": a.ops,
        "p_edges": a.ops if a.edges is None else a.edges,
        "p_weights": a.weights,
        "p_channels": table if a.channels is None else a.channels,
        "p_inverse": inverse,
        "p_norms": norms,
        "p_scaled": scaled,
        "p_affine": norms if a.affine is None else a.affine,
        "columns": a.ops.shape[1],
        "COLUMNS": padded(a.ops.shape[1]),
    }


def forward(a: MixedCell, sync: Sync | None = None) -> MixedCellResults:
    """Run the registered op.

    sync  without running statistics, batch statistics are those of all its ranks, which have as many images each
    """
    x, batch = a.inputs[0], a.running_mean is None
    flags = flags_of(a, batch, sync is not None)
    plan, table = _planned(tuple(a.graph), tuple(x.shape), a.partial_channels, flags, None, x.device)
    size = plan.N, plan.graph.nodes * plan.C, plan.Ho, plan.Wo
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    saved = x.new_empty(plan.saved)
    numbers = plan.graph.norms * plan.Cq
    statistics = x.new_empty((2, numbers), dtype=torch.float64)
    mean, var = statistics if a.running_mean is None or a.running_var is None else (a.running_mean, a.running_var)
    names = _common(plan, table, a, saved) | {
        "p_out": out,
        "p_statistics": x.new_empty(numbers * plan.parts * 3 if plan.call.batch else 0, dtype=torch.float32),
        "p_mean": mean.contiguous(),
        "p_var": var.contiguous(),
        "p_result": statistics,
        "eps": a.eps,
    }
    _execute(plan, table, x, names, sync)
    return MixedCellResults(out, statistics, saved)


def backward(a: MixedCellBackward, sync: Sync | None = None) -> MixedCellGradients:
    """Run the registered backward; sync is the forward's."""
    x, ops, needs = a.inputs[0], a.ops, (a.need_inputs, a.need_ops, a.need_weights)
    flags = flags_of(a, a.batch_statistics, sync is not None)
    plan, table = _planned(tuple(a.graph), tuple(x.shape), a.partial_channels, flags, needs, x.device)
    grad_inputs = [torch.empty_like(one, memory_format=torch.channels_last) for one in a.inputs] if a.need_inputs else []
    grad_ops, grad_edges = (ops.new_empty(size if a.need_ops else 0) for size in (ops.shape, ops.shape[:1]))
    grad_weights = a.weights.new_empty(a.weights.shape if a.need_weights else 0)
    grad_affine = x.new_empty(0) if a.affine is None or not a.need_weights else torch.empty_like(a.affine)

    def sums(*sizes: int) -> Tensor:
        return x.new_empty(prod(sizes), dtype=torch.float32)

    work = x.new_empty(plan.work)
    names = _common(plan, table, a, a.saved) | {
        "p_grad_inputs": _inputs(grad_inputs, work),
        "p_grad": a.grad,
        "p_work": work,
        "p_coefficients": sums(plan.graph.norms, 3, plan.Cq),
        "p_sums": sums(sum(map(len, plan.sums)), plan.parts, 2, plan.Cq),
        "p_middles": sums(plan.slots, plan.parts, 2, plan.Cq),
        "p_parts": sums(plan.learnt, plan.numbers),
        "p_grad_ops": grad_ops,
        "p_grad_edges": grad_edges,
        "p_grad_weights": grad_weights,
        "p_grad_affine": grad_affine,
    }
    _execute(plan, table, x, names, sync)
    return MixedCellGradients(grad_inputs, grad_ops, grad_edges, grad_weights, grad_affine)
