"""A DARTS cell of another codebase as one fused call, and its preprocess layers.

Notation: N images, C channels, E edges, K candidates of the longest list.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from fastdarts.interop.candidates import fits
from fastdarts.interop.classes import PLAN, Before
from fastdarts.interop.mixture import (
    NOT_TRACED,
    MixturePlan,
    Weights,
    as_row,
    even,
    format_of,
    partial_channels,
)
from fastdarts.interop.parts import Layers, alike, run
from fastdarts.interop.reads import Reads
from fastdarts.interop.recognise import FusableCandidate, as_preprocess, recognise
from fastdarts.interop.tree import signature
from fastdarts.kernels.graph import Candidate, Edge, Graph
from fastdarts.module_hooks import global_hooks, has_hooks
from fastdarts.ops.relu_conv_bn import relu_conv_bn


@dataclass
class PreprocessPlan:
    """Locations of a preprocess layer's ReLU, 1x1 convolution and BatchNorm, and their modules' kinds when verified."""

    kind: tuple[Any, ...]
    found: Layers
    backend: str = "auto"

    def update(self, module: nn.Module) -> Layers | None:
        """Return the current layers, or None if the module is no longer such a layer."""
        if self.found.same(module):
            return self.found
        layer = as_preprocess(recognise(module)) if signature(module) == self.kind else None
        found = None if layer is None else Layers.of(module, layer)._replace(reads=self.found.reads)
        if found is not None and not getattr(module, "_is_replica", False):
            self.found = found
        return found


class FusedPreprocess(Before):
    """Mixin in front of a converted preprocess layer's class."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map x (N, C, H, W) to (N, D, H/s, W/s)."""
        out = None if args or kwargs or global_hooks() else _preprocessed(self, x)
        return super().forward(x, *args, **kwargs) if out is None else out


@torch.compiler.disable(reason=NOT_TRACED)
def _preprocessed(layer: nn.Module, x: Tensor) -> Tensor | None:
    """Return None if the layer's own forward has to run."""
    plan: PreprocessPlan = layer.__dict__[PLAN]
    found = plan.update(layer)
    if found is None or found.tree.has_hooks() or not found.as_tried(layer):
        return None
    if not alike([found], x) or not even(len(found.convolutions), x) or found.drops():
        return None
    norm = found.norms[0]
    tracks = norm.running_mean is not None
    if norm.training and tracks and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return relu_conv_bn(
        x,
        [c.weight for c in found.convolutions],
        (norm.running_mean, norm.running_var) if tracks else None,
        training=norm.training,
        momentum=norm.momentum,
        eps=norm.eps,
        backend=plan.backend,
    )


@dataclass
class CellPlan:
    """Verified facts of a cell of two inputs whose node i reads all earlier states, in the order of its list.

    before   names of its two preprocess layers
    name     of its list of mixed operations
    beta     whether it takes the edges' weights after the candidates'
    bare     whether they may be omitted or None: all are 1
    further  verified values of its remaining arguments: other values run its own forward
    reads, channels_last  as of a MixturePlan
    """

    before: tuple[str, str]
    name: str
    beta: bool = False
    further: tuple[Any, ...] = ()
    backend: str = "auto"
    reads: Reads | None = None
    channels_last: bool = False
    bare: bool = False

    def split(self, arguments: tuple[Any, ...]) -> tuple[Any, Any, tuple[Any, ...]] | None:
        """Return candidates' weights, edges' weights or None, and further arguments; None if they do not match the plan."""
        if not arguments or (self.beta and not self.bare and len(arguments) < 2):
            return None
        beta = arguments[1] if self.beta and len(arguments) > 1 else None
        if self.beta and beta is None and not self.bare:
            return None
        return arguments[0], beta, arguments[2 if self.beta else 1 :]


class FusedCell(Before):
    """Mixin in front of a converted cell's class, whose mixed operations are converted, too."""

    def forward(self, s0: Tensor, s1: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """s0, s1 (N, C, H, W), weights (E, K) or E rows, edges' weights (E,) where the class takes them."""
        plan: CellPlan = self.__dict__[PLAN]
        watched = not kwargs and not global_hooks() and (plan.reads is None or plan.reads.same(self))
        parts = plan.split(args) if watched else None
        usual = parts is not None and _equal(parts[2], plan.further)
        out = _fused(self, plan, s0, s1, *parts[:2]) if usual else None
        if out is not None:
            return out
        s0, s1 = (s.contiguous(memory_format=format_of(plan)) for s in (s0, s1))
        return super().forward(s0, s1, *args, **kwargs)


def _equal(args: tuple[Any, ...], tried: tuple[Any, ...]) -> bool:
    """Compare arguments with the first of the verified ones; a tensor equals none of them."""
    pairs = zip(args, tried, strict=False)
    return len(args) <= len(tried) and not any(isinstance(a, Tensor) or a != b for a, b in pairs)


@torch.compiler.disable(reason=NOT_TRACED)
def _fused(
    cell: nn.Module, plan: CellPlan, s0: Tensor, s1: Tensor, rows: Tensor | list[Weights], betas: Weights | None
) -> Tensor | None:
    """Return None if the cell's own forward has to run."""
    listed: Any = cell._modules.get(plan.name)
    edges: list[nn.Module] = [] if listed is None else list(listed._modules.values())
    nodes = nodes_of(len(edges))
    plans: list[Any] = [edge.__dict__.get(PLAN) for edge in edges]
    if not nodes or not all(isinstance(p, MixturePlan) for p in plans) or len(rows) != len(edges):
        return None
    try:
        layers = [p.update(edge) for edge, p in zip(edges, plans, strict=True)]
    except KeyError:
        return None
    if not all(map(_whole, edges, plans, layers)):
        return None
    ops = _table(rows, plans, s0)
    beta = None if betas is None else as_row(betas, s0)
    if ops is None or (betas is not None and (beta is None or len(beta) != len(edges))):
        return None
    live = tuple(tuple(range(len(p.layouts))) for p in plans)
    if any(p.skips_zeros or p.positive for p in plans):
        values = ops.tolist()
        if any(p.positive and not all(values[e][i] > 0 for i in live[e]) for e, p in enumerate(plans)):
            return None
        live = tuple(tuple(i for i in row if values[e][i] != 0 or not plans[e].skips_zeros) for e, row in enumerate(live))
    found = [of_edge[i] for of_edge, row in zip(layers, live, strict=True) for i in row]
    if not alike(found, s0):
        return None
    codes = tuple(tuple(p.layouts[i].code for i in row) or (Candidate.NONE,) for p, row in zip(plans, live, strict=True))
    graph = cell_graph(tuple(p.stride for p in plans), codes)
    before: Any = cell._modules
    inputs = [before[name](s) for name, s in zip(plan.before, (s0, s1), strict=True)]
    k = partial_channels(plans[0], inputs[0])
    same = all(p.unchanged(edge, k) for edge, p in zip(edges, plans, strict=True))
    if graph is None or not same or inputs[0].shape != inputs[1].shape or not k or not even(graph.stride, inputs[0]):
        return _edge_by_edge(edges, inputs, rows, betas)
    return run(found, inputs, _picked(ops, live), beta, graph, k, plan.backend)


def _edge_by_edge(edges: list[nn.Module], inputs: list[Tensor], rows: Tensor | list[Weights], betas: Weights | None) -> Tensor:
    """Compute the whole cell by its mixed operations."""
    states = list(inputs)
    for node in range(nodes_of(len(edges))):
        first = len(states) * (len(states) - 1) // 2 - 1
        terms = [edges[first + i](s, rows[first + i]) for i, s in enumerate(states[: node + 2])]
        if betas is not None:
            terms = [betas[first + i] * term for i, term in enumerate(terms)]
        states.append(sum(terms[1:], terms[0]))
    return torch.cat(states[2:], dim=1)


def _whole(edge: nn.Module, plan: MixturePlan, found: list[Layers | None]) -> bool:
    """Return whether all of an edge's candidates are fused in this call."""
    if has_hooks(edge) or not plan.stride:
        return False
    codes = [layout.code for layout in plan.layouts if isinstance(layout, FusableCandidate)]
    every = zip(plan.candidates(edge), plan.layouts, found, strict=True)
    return len(set(codes)) == len(plan.layouts) and all(fits(*one) for one in every)


def _table(rows: Tensor | list[Weights], plans: list[MixturePlan], x: Tensor) -> Tensor | None:
    """Return the candidates' weights as one tensor (E, K) on x' device, or None for anything else."""
    if isinstance(rows, Tensor):
        fits = rows.dim() == 2 and all(p.takes(rows.shape[1]) for p in plans)
        same = rows.dtype == x.dtype or torch.is_autocast_enabled(x.device.type)
        return rows.to(x.device) if fits and same and rows.is_floating_point() else None
    listed = [as_row(row, x) for row in rows]
    found = [row for row in listed if row is not None]
    if len(found) < len(listed) or not all(p.takes(len(row)) for row, p in zip(found, plans, strict=True)):
        return None
    cut = [row[: len(p.layouts)] for row, p in zip(found, plans, strict=True)]
    return nn.utils.rnn.pad_sequence(cut, batch_first=True)


def _picked(ops: Tensor, live: tuple[tuple[int, ...], ...]) -> Tensor:
    """Gather the columns of the live candidates at the front."""
    if all(row == tuple(range(len(row))) for row in live):
        return ops
    return nn.utils.rnn.pad_sequence([ops[e][list(row or (0,))] for e, row in enumerate(live)], batch_first=True)


def nodes_of(edges: int) -> int:
    """Return the number of nodes of a cell of two inputs whose node i has i + 2 edges; 0 if no number of nodes fits."""
    nodes, total = 0, 0
    while total < edges:
        total += nodes + 2
        nodes += 1
    return nodes if total == edges else 0


@lru_cache(maxsize=1024)
def cell_graph(strides: tuple[int, ...], codes: tuple[tuple[Candidate, ...], ...]) -> Graph | None:
    """Build the graph whose node i reads states 0 .. i+1, in order; None for strides that no cell has."""
    edges, number = [], 0
    for node in range(nodes_of(len(codes))):
        for source in range(node + 2):
            edges.append(Edge(source, node, strides[number], codes[number]))
            number += 1
    try:
        return Graph(2, nodes_of(len(codes)), tuple(edges))
    except ValueError:
        return None
