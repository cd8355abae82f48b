"""The mixed edges of a cell: one op, one packed parameter, and DARTS' names in state_dict.

Notation: N images, C channels of a node, k the divisor of partial channels, Cq = C/k, E edges, B BatchNorms.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdarts.kernels.graph import Graph
from fastdarts.ops.batch_norm import Running
from fastdarts.ops.mixed_cell import mixed_cell
from fastdarts.ops.sync import Sync
from fastdarts.spaces import Kind, Space
from fastdarts.supernet.candidates import graph_of, names_of
from fastdarts.supernet.restricted import Restriction, restriction

COUNTER = "num_batches_tracked"  # of forwards; each norm of a DARTS checkpoint has one


class PackedEdges(nn.Module):
    """Every candidate of every edge of a graph, weighted and summed into its nodes (see ops.mixed_cell).

    convolutions, norms  their names in state_dict, in packing order
    C                    channels of a node
    partial_channels     k: C/k channels pass through the candidates
    backend              of ops.mixed_cell
    track_running_stats  BatchNorms keep running statistics for eval mode; else they always use the batch's

    All convolutions are one parameter, `weights`; all BatchNorms (no affine parameters, eps 1e-5, momentum 0.1) have one
    `running_mean`, one `running_var` and one counter. `state_dict` and `load_state_dict` use the names of DARTS' codebases,
    `EDGE._ops.CANDIDATE.op.1.weight` and so on. Initial weights are torch's for Conv2d, drawn in order.
    """

    running_mean: Tensor | None
    running_var: Tensor  # this one and the next are None, too, where that is
    num_batches_tracked: Tensor

    def __init__(
        self,
        graph: Graph,
        convolutions: list[str],
        norms: list[str],
        C: int,
        partial_channels: int = 1,
        backend: str = "auto",
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.graph, self.k, self.backend = graph, partial_channels, backend
        self.sync: Sync | None = None  # of ops.mixed_cell
        self.separate: list[str] = []  # paths of submodules that load their own part of a state_dict
        self.C, self._Cq = C, C // partial_channels
        self._convolutions, self._norms = convolutions, norms
        self._shapes = self.graph.convolutions(self._Cq)
        self.weights = nn.Parameter(torch.empty(self.graph.size(self._Cq)))
        length = len(self._norms) * self._Cq
        self.register_buffer("running_mean", torch.zeros(length) if track_running_stats else None)
        self.register_buffer("running_var", torch.ones(length) if track_running_stats else None)
        self.register_buffer(COUNTER, torch.zeros((), dtype=torch.int64) if track_running_stats else None)
        with torch.no_grad():
            for weight in self.unpacked(self.weights).values():
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5))

    def mixed(self, inputs: list[Tensor], ops: Tensor, edges: Tensor | None, channels: Tensor | None = None) -> Tensor:
        """See ops.mixed_cell: two (N, C, H, W), (E, K), (E,) or None, int64 (E, Cq) or None -> (N, nodes * C, H', W')."""
        return mixed_cell(
            inputs,
            ops,
            edges,
            self.weights,
            self._running(),
            channels,
            graph=self.graph,
            partial_channels=self.k,
            training=self.training,
            backend=self.backend,
            sync=self.sync if self.training else None,  # a rank may run eval mode alone
        )

    def _running(self) -> Running | None:
        """Return the running statistics that a forward updates or reads; in training, count the forward."""
        if self.running_mean is None:
            return None
        if self.training:
            self.num_batches_tracked.add_(1)
        return self.running_mean, self.running_var

    def unpacked(self, packed: Tensor) -> dict[str, Tensor]:
        """Return views of a tensor packed like `weights` (itself, its gradient), under DARTS' names."""
        pieces = packed.split([math.prod(shape) for shape in self._shapes])
        parts = zip(self._convolutions, pieces, self._shapes, strict=True)
        return {f"{name}.weight": piece.view(shape) for name, piece, shape in parts}

    def _named(self, weights: Tensor) -> dict[str, Tensor]:
        """Return the contents of state_dict: views of the packed tensors, and the one counter under every norm's name."""
        named = self.unpacked(weights)
        if self.running_mean is None:
            return named
        means, variances = (b.view(len(self._norms), self._Cq) for b in (self.running_mean, self.running_var))
        for name, mean, var in zip(self._norms, means, variances, strict=True):
            named |= {f"{name}.running_mean": mean, f"{name}.running_var": var, f"{name}.{COUNTER}": self.num_batches_tracked}
        return named

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        named = self._named(self.weights if keep_vars else self.weights.detach())
        destination.update({prefix + name: tensor for name, tensor in named.items()})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Fill the packed tensors in place. Counters may be missing, as in checkpoints of torch 0.3.

        `assign=True` cannot share a checkpoint's memory here: it takes its dtype and device.
        """
        separate = tuple(f"{prefix}{path}." for path in self.separate)
        names = [name for name in state_dict if name.startswith(prefix) and not name.startswith(separate)]
        numbers = [t for name in names if isinstance(t := state_dict[name], Tensor) and t.is_floating_point()]
        if numbers and local_metadata.get("assign_to_params_buffers"):
            device, dtype = numbers[0].device, numbers[0].dtype
            self._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device)).to(dtype)
        carrier = nn.Module()  # torch's own copying and messages, for our views
        carrier._buffers.update(self._named(self.weights.detach()))
        nn.Module._load_from_state_dict(carrier, state_dict, prefix, {}, False, [], [], error_msgs)
        if strict:
            expected = dict.fromkeys(prefix + name for name in carrier._buffers)
            missing_keys += [n for n in expected if n not in state_dict and not n.endswith(COUNTER)]
            unexpected_keys += [n for n in names if n not in expected]


class MixedEdges(PackedEdges):
    """The edges of a cell of a space with fused candidates only."""

    def __init__(
        self,
        space: Space,
        kind: Kind,
        C: int,
        partial_channels: int = 1,
        backend: str = "auto",
        track_running_stats: bool = True,
    ) -> None:
        graph, names = graph_of(space, kind), names_of(space, kind)
        super().__init__(graph, *names, C, partial_channels, backend, track_running_stats)
        self._part: Restriction | None = None

    def restrict(self, kept: Sequence[Collection[int]] | None) -> None:
        """Compute only the candidates at these places of each edge; None: all. The weights of all others must be 0.

        The others' running statistics stay, and their weights get gradients of 0. Steps captured before must not be replayed.
        """
        self._part = None if kept is None else restriction(self.graph, kept, self._Cq, self.weights.device)

    def forward(self, inputs: list[Tensor], ops: Tensor, edges: Tensor | None, channels: Tensor | None = None) -> Tensor:
        """As `mixed`."""
        part = self._part
        if part is None:
            return self.mixed(inputs, ops, edges, channels)
        whole = self._running()
        running = None if whole is None else (whole[0].index_select(0, part.norms), whole[1].index_select(0, part.norms))
        out = mixed_cell(
            inputs,
            ops.reshape(-1).index_select(0, part.columns).view(len(ops), -1),
            edges,
            self.weights.index_select(0, part.weights),
            running,
            channels,
            graph=part.graph,
            partial_channels=self.k,
            training=self.training,
            backend=self.backend,
            sync=self.sync if self.training else None,
        )
        if whole is not None and running is not None and self.training:
            for statistics, moved in zip(whole, running, strict=True):
                statistics.index_copy_(0, part.norms, moved)
        return out
