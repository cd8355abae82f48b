"""Candidates without a fused op: they run in eager mode next to the fused ones, node by node.

Notation: N images, C channels of a node, k the divisor of partial channels, Cq = C/k, H W pixels, s an edge's stride,
E edges of a cell, K candidates of the longest list.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdarts.kernels.graph import Edge, Graph
from fastdarts.kernels.mixed_cell_launches import MOST_INPUTS
from fastdarts.ops.mixed_cell import mixed_cell
from fastdarts.spaces import CANDIDATES, SKELETONS, Kind, Space
from fastdarts.spaces.candidates import Candidate, Family
from fastdarts.supernet.candidates import edge_names, fused, graph_of, names_of
from fastdarts.supernet.mixed import MixedEdges, PackedEdges

Build = Callable[[int, int], nn.Module]  # channels, stride -> (N, channels, H, W) to (N, channels, H/stride, W/stride)


class RandomModule(nn.Module):
    """A module that draws new numbers from torch's global generator at each forward, except within `shared_noise`."""

    def __init__(self) -> None:
        super().__init__()
        self.repeats = False
        self._drawn: Tensor | None = None

    def draw(self, numbers: Callable[..., Tensor], like: Tensor) -> Tensor:
        """Draw numbers of like's shape, dtype and device, channels last; within `shared_noise` repeat those of the first call.

        numbers  torch.randn or torch.rand: many times faster into memory in its own order than into a channels_last tensor
        """
        if self._drawn is not None:
            return self._drawn
        drawn = numbers(like.movedim(1, -1).shape, dtype=like.dtype, device=like.device).movedim(-1, 1)
        if self.repeats:
            self._drawn = drawn
        return drawn


@contextmanager
def shared_noise(module: nn.Module) -> Generator[None]:
    """Repeat the first draw of each RandomModule at every forward inside, so that losses differ by weights alone."""
    modules = [m for m in module.modules() if isinstance(m, RandomModule)]
    for each in modules:
        each.repeats = True
    try:
        yield
    finally:
        for each in modules:
            each.repeats, each._drawn = False, None


class Noise(RandomModule):
    """Standard normal noise of the edge's output shape, independent of its input: the candidate of S4 (R-DARTS).

    Also drawn in eval mode.
    """

    def __init__(self, C: int, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H/s, W/s); x gets no gradient."""
        return self.draw(torch.randn, x[:, :, :: self.stride, :: self.stride])


class SkipDropout(RandomModule):
    """Identity with dropout: in training each number is 0 with probability `rate`, else divided by 1 - rate.

    (P-DARTS, Chen et al., ICCV 2019, section 3.3.) `rate` is a buffer, so that captured graphs see its changes.
    """

    rate: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rate", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        if not self.training:
            return x
        return x * (self.draw(torch.rand, x) >= self.rate) / (1 - self.rate)


BUILDERS: dict[str, Build] = {"noise": Noise}


def register_candidate(name: str, build: Build, family: Family = "conv") -> None:
    """Register a custom candidate by name, for spaces and supernets created afterwards; it runs in eager mode.

    build   (channels, stride) -> a module from (N, channels, H, W) to (N, channels, H/stride, W/stride); its parameters are
            trained with the weights, under the names `EDGE._ops.POSITION.`
    family  for the collapse figures and the drawings
    Raises ValueError for a name that is taken.
    """
    if name in CANDIDATES:
        raise ValueError(f"candidate {name} already exists")
    CANDIDATES[name] = Candidate(name, family, SKELETONS)
    BUILDERS[name] = build


def eager_positions(space: Space, kind: Kind, skip_dropout: bool = False) -> list[set[int]]:
    """Return for each edge the positions of its eager candidates: unknown to the fused op, or skips with dropout."""
    known, rows = fused(space.skeleton), []
    for edge, names in zip(_edges(space, kind), space.candidates(kind), strict=True):
        dropped = {"skip_connect"} if skip_dropout and edge.stride == 1 else set()
        rows.append({p for p, name in enumerate(names) if name not in known or name in dropped})
    return rows


class _Step(nn.Module):
    """A container for one part of a dotted name, without parameters to load."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None: ...


class _Group(NamedTuple):
    """Edges of one stride into one node: one call of the fused op."""

    node: int
    numbers: list[int]  # of its edges
    sources: list[int]
    graph: Graph
    columns: list[list[int]]  # (edges, K'): columns of the op's weights among the cell's


class MixedEdgesWithEager(PackedEdges):
    """The edges of a cell with eager candidates; the other candidates are fused, node by node and stride by stride.

    skip_dropout  apply dropout to skips of stride 1, as P-DARTS does; the rate is that of the SkipDropout modules
    Everything else is as in MixedEdges.
    """

    def __init__(
        self,
        space: Space,
        kind: Kind,
        C: int,
        partial_channels: int = 1,
        backend: str = "auto",
        track_running_stats: bool = True,
        skip_dropout: bool = False,
    ) -> None:
        eager = eager_positions(space, kind, skip_dropout)
        graph = graph_of(space, kind, eager)
        super().__init__(graph, *names_of(space, kind), C, partial_channels, backend, track_running_stats)
        fused_positions = [
            [p for p in range(len(names)) if p not in positions]
            for names, positions in zip(space.candidates(kind), eager, strict=True)
        ]
        self._groups = [_group(graph, fused_positions, numbers) for numbers in _numbers(graph)]
        self._indices: dict[tuple[int, torch.device, int], Tensor] = {}
        self._eager: dict[int, list[tuple[int, nn.Module]]] = {}
        for number, (edge, positions, prefix) in enumerate(zip(graph.edges, eager, edge_names(space), strict=True)):
            for position in sorted(positions):
                name = space.candidates(kind)[number][position]
                module = SkipDropout() if name == "skip_connect" else BUILDERS[name](self._Cq, edge.stride)
                self._register(f"{prefix}.{position}", module)
                self._eager.setdefault(number, []).append((position, module))

    def forward(self, inputs: list[Tensor], ops: Tensor, edges: Tensor | None, channels: Tensor | None = None) -> Tensor:
        """As PackedEdges'."""
        states, pieces = list(inputs), self._pieces()
        for node in range(self.graph.nodes):
            terms = [
                self._fused(group, piece, states, ops, edges, channels)
                for group, piece in zip(self._groups, pieces, strict=True)
                if group.node == node
            ]
            total = sum(terms[1:], terms[0])
            for number in [n for group in self._groups if group.node == node for n in group.numbers]:
                for position, module in self._eager.get(number, ()):
                    weight = ops[number, position] if edges is None else ops[number, position] * edges[number]
                    source = states[self.graph.edges[number].source]
                    total = self._added(total, weight, module, source, None if channels is None else channels[number])
            states.append(total)
        return torch.cat(states[self.graph.inputs :], dim=1)

    def _register(self, path: str, module: nn.Module) -> None:
        """Register a module under a dotted name."""
        *above, name = path.split(".")
        parent: nn.Module = self
        for step in above:
            if step not in parent._modules:
                parent.add_module(step, _Step())
            parent = parent.get_submodule(step)
        parent.add_module(name, module)
        self.separate.append(path)

    def _pieces(self) -> list[tuple[Tensor, tuple[Tensor, Tensor] | None]]:
        """Return each group's weights and running statistics: views."""
        weights = self.weights.split([group.graph.size(self._Cq) for group in self._groups])
        running, lengths = self._running(), [group.graph.norms * self._Cq for group in self._groups]
        if running is None:
            return [(w, None) for w in weights]
        return list(zip(weights, zip(*(r.split(lengths) for r in running), strict=True), strict=True))

    def _fused(
        self,
        group: _Group,
        piece: tuple[Tensor, tuple[Tensor, Tensor] | None],
        states: list[Tensor],
        ops: Tensor,
        edges: Tensor | None,
        channels: Tensor | None,
    ) -> Tensor:
        """Return the sum of a group's edges without the eager candidates: (N, C, H/s, W/s)."""
        first, last = group.numbers[0], group.numbers[-1] + 1
        return mixed_cell(
            [states[source] for source in group.sources],
            self._weights_of(group, ops[first:last]),
            None if edges is None else edges[first:last],
            piece[0],
            piece[1],
            None if channels is None else channels[first:last],
            graph=group.graph,
            partial_channels=self.k,
            training=self.training,
            backend=self.backend,
            sync=self.sync if self.training else None,  # a rank may run eval mode alone
        )

    def _weights_of(self, group: _Group, ops: Tensor) -> Tensor:
        """Select the weights of the group's fused candidates, (edges, K'), from the cell's (edges, K).

        Not by gather: its backward synchronises with the device under deterministic algorithms.
        """
        key = group.numbers[0], ops.device, ops.shape[1]
        if key not in self._indices:  # once: a step that copies to the device cannot be captured
            indices = [row * ops.shape[1] + column for row, columns in enumerate(group.columns) for column in columns]
            self._indices[key] = torch.tensor(indices, device=ops.device)
        return ops.reshape(-1).index_select(0, self._indices[key]).view(len(group.columns), -1)

    def _added(self, total: Tensor, weight: Tensor, module: nn.Module, x: Tensor, chosen: Tensor | None) -> Tensor:
        """Return total (N, C, H/s, W/s) + weight * module(the processed channels of x), added at their output channels."""
        if weight.dim():  # of each image
            weight = weight[:, None, None, None]
        if self.k == 1:
            return total + (weight * module(x)).to(total.dtype)  # autocast may have returned another dtype
        if chosen is None:  # processed channel p becomes channel p * k
            out, channels = module(x[:, : self._Cq]), torch.arange(0, x.shape[1], self.k, device=x.device)
        else:
            out, channels = module(x.index_select(1, chosen)), chosen
        return total.index_add(1, channels, (weight * out).to(total.dtype))


def _edges(space: Space, kind: Kind) -> Sequence[Edge]:
    everything = [range(len(names)) for names in space.candidates(kind)]
    return graph_of(space, kind, everything).edges


def _numbers(graph: Graph) -> list[list[int]]:
    """Group the edges' numbers by node and stride; a group has at most as many as every backend takes inputs."""
    keyed = [((edge.node, edge.stride), number) for number, edge in enumerate(graph.edges)]
    groups = [[number for _, number in group] for _, group in groupby(keyed, key=lambda pair: pair[0])]
    return [group[i : i + MOST_INPUTS] for group in groups for i in range(0, len(group), MOST_INPUTS)]


def _group(graph: Graph, fused_positions: Sequence[list[int]], numbers: list[int]) -> _Group:
    edges = [graph.edges[n] for n in numbers]
    own = Graph(len(edges), 1, tuple(edge._replace(source=i, node=0) for i, edge in enumerate(edges)))
    positions = [fused_positions[n] for n in numbers]  # an edge whose only candidate is NONE may have any weight
    columns = [row + [0] * (own.longest - len(row)) for row in positions]
    return _Group(edges[0].node, numbers, [edge.source for edge in edges], own, columns)


def mixed_edges(
    space: Space,
    kind: Kind,
    C: int,
    partial_channels: int = 1,
    backend: str = "auto",
    track_running_stats: bool = True,
    skip_dropout: bool = False,
) -> PackedEdges:
    """Return the edges of a cell: one fused call if every candidate is fused."""
    options = space, kind, C, partial_channels, backend, track_running_stats
    if any(eager_positions(space, kind, skip_dropout)):
        return MixedEdgesWithEager(*options, skip_dropout)
    return MixedEdges(*options)
