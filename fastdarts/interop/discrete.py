"""A discrete cell of another codebase as two fused calls: its preprocess layers, then all its operations.

Notation: N images, C channels of a node, L layers, T = 2 + L terms (see stand_ins), E operations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fastdarts.interop.candidates import Candidates, fits
from fastdarts.interop.classes import PLAN, Before
from fastdarts.interop.mixture import NOT_TRACED, format_of
from fastdarts.interop.parts import Layers, alike, run
from fastdarts.interop.reads import Reads
from fastdarts.interop.recognise import FusableCandidate, as_preprocess
from fastdarts.interop.stand_ins import NotFused, layers_of, observed
from fastdarts.kernels.graph import Candidate, Edge, Graph
from fastdarts.logs import say_once
from fastdarts.module_hooks import global_hooks
from fastdarts.ops import of_layers
from fastdarts.ops.backend import arithmetic

PLAIN = (bool, int, float, str, type(None))  # arguments besides the two states


class Structure(NamedTuple):
    """What a cell's forward does with its layers' outputs.

    before      numbers of the two preprocess layers
    operations  numbers of the operations, by node
    sources     state that each of them reads; states 0 and 1 are the inputs, then come the nodes
    nodes       node that each of them leads to
    concat      states that are concatenated
    rows        for each operation, a row of `support` whose state is its node
    support     bool (L + len(concat), 1, T): the terms of each state that stand_ins.observed returns
    """

    before: tuple[int, int]
    operations: tuple[int, ...]
    sources: tuple[int, ...]
    nodes: tuple[int, ...]
    concat: tuple[int, ...]
    rows: tuple[int, ...]
    support: Tensor

    @staticmethod
    def of(seen: Tensor, preprocess: Sequence[bool]) -> "Structure":
        """Find the structure from stand_ins.observed's result without drop path.

        preprocess  whether each layer may be a preprocess layer
        Raises NotFused for another structure than sums of operations that read the preprocess layers' outputs or other sums.
        """
        support = (seen != 0).any(1)
        L = len(preprocess)
        terms = [frozenset(row.nonzero().flatten().tolist()) for row in support]
        before = [[i for i in range(L) if terms[i] == {number}] for number in (0, 1)]
        if [len(found) for found in before] != [1, 1] or not all(preprocess[i] for (i,) in before):
            raise NotFused("each of its inputs does not have one preprocess layer")
        inputs = [frozenset({2 + i}) for (i,) in before]
        operations = frozenset(2 + i for i in range(L)) - inputs[0] - inputs[1]
        read = {2 + i: terms[i] for i in range(L)}
        sums = set(terms[L:]) | {read[t] for t in operations}
        nodes = _ordered(sums - set(inputs), read, inputs)
        if sorted(t for node in nodes for t in node) != sorted(operations):
            raise NotFused("not each of its operations leads to one node")
        states = [*inputs, *nodes]
        order = [t for node in nodes for t in sorted(node)]
        return Structure(
            (before[0][0], before[1][0]),
            tuple(t - 2 for t in order),
            tuple(states.index(read[t]) for t in order),
            tuple(number for number, node in enumerate(nodes) for _ in node),
            tuple(map(states.index, terms[L:])),
            tuple(terms.index(node) for node in nodes for _ in node),
            support[:, None],
        )

    def factors(self, seen: Tensor) -> Tensor | None:
        """Return the factors (E, N) of the operations' outputs in stand_ins.observed's result; None if all are 1.

        Raises NotFused if the result has another structure.
        """
        if seen.shape[::2] == self.support.shape[::2]:
            columns = [2 + i for i in self.operations]
            found = seen[list(self.rows), :, columns]
            every = seen.new_ones(seen.shape[1:])
            every[:, columns] = found.T
            if torch.equal(seen, every * self.support):
                return None if bool((found == 1).all()) else found
        raise NotFused("its forward sums other layers' outputs than when it was verified")


def _ordered(nodes: set[frozenset[int]], read: dict[int, frozenset[int]], states: list[frozenset[int]]) -> list[frozenset[int]]:
    """Order nodes so that each operation reads an earlier state. Raises NotFused for a term that is no operation's."""
    rest, known = sorted(nodes, key=sorted), list(states)
    while rest:
        ready = [node for node in rest if all(t in read and read[t] in known for t in node)]
        if not ready:
            raise NotFused("its nodes are no sums of operations alone")
        known.append(ready[0])
        rest.remove(ready[0])
    return known[len(states) :]


@dataclass(kw_only=True)
class DiscretePlan(Candidates):
    """Verified facts of a discrete cell.

    strict  a call that cannot be fused raises: for a trial
    reads, channels_last  as of a MixturePlan
    """

    structure: Structure | None = None
    reads: Reads | None = None
    backend: str = "auto"
    channels_last: bool = False
    strict: bool = False
    searched: ClassVar[bool] = False

    @property
    def key(self) -> str | None:
        """Return the key of what the cell's forward reads."""
        return None if self.reads is None else self.reads.key

    def candidates(self, module: nn.Module) -> list[nn.Module]:
        """Return the cell's layers."""
        return list(layers_of(module))

    def graph(self) -> Graph:
        """Return the graph of the current operations. Raises NotFused for strides that no cell has."""
        structure: Any = self.structure
        layouts = [self.layouts[i] for i in structure.operations]
        edges = zip(structure.sources, structure.nodes, layouts, strict=True)
        graph = _graph(tuple(Edge(source, node, a.stride, (a.code,)) for source, node, a in edges))
        if graph is None:
            raise NotFused("the strides of its operations differ")
        return graph

    def identities(self) -> list[int]:
        """Return the numbers of the layers that return their input."""
        return [i for i, a in enumerate(self.layouts) if getattr(a, "code", None) == Candidate.SKIP and a.stride == 1]

    def structure_of(self, cell: nn.Module, arguments: Sequence[Any], like: Tensor) -> Structure:
        """Find the structure: two images suffice, without drop path. Raises NotFused."""
        preprocess = [as_preprocess(layout) is not None for layout in self.layouts]
        return Structure.of(observed(cell, arguments, {}, 2, like, self.identities()), preprocess)


class FusedDiscreteCell(Before):
    """Mixin in front of a converted discrete cell's class."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Two states (N, C, H, W), and what else the class takes, as the probability of drop path."""
        out = _fused(self, args, kwargs)
        if out is not None:
            return out
        memory = format_of(self.__dict__[PLAN])
        states = [s.contiguous(memory_format=memory) if isinstance(s, Tensor) and s.dim() == 4 else s for s in args[:2]]
        return super().forward(*states, *args[2:], **kwargs)


@torch.compiler.disable(reason=NOT_TRACED)
def _fused(cell: nn.Module, arguments: Sequence[Any], named: dict[str, Any]) -> Tensor | None:
    """Return None if the cell's own forward has to run, and log why."""
    plan: DiscretePlan = cell.__dict__[PLAN]
    try:
        return _computed(cell, plan, arguments, named)
    except NotFused as why:
        if plan.strict:
            raise
        say_once(f"a converted {type(cell).__name__} runs its own forward: {why}")
    return None


def _computed(cell: nn.Module, plan: DiscretePlan, arguments: Sequence[Any], named: dict[str, Any]) -> Tensor:
    """Raise NotFused if the cell's own forward has to run; nothing has changed by then."""
    states, further = list(arguments[:2]), arguments[2:]
    _check_call(plan, states, [*further, *named.values()])
    found: list[Any] = plan.update(cell)
    _check_cell(cell, plan, found)
    structure: Any = plan.structure
    before, after = ([found[i] for i in numbers] for numbers in (structure.before, structure.operations))
    graph, x = plan.graph(), states[0]
    _check_shapes(graph, before, {plan.layouts[i].channels for i in structure.operations}, states)
    if len({f.norms[0].affine for f in before}) > 1 or not all(alike(each, x, affine=True) for each in (before, after)):
        raise NotFused("its BatchNorms differ in mode or settings")
    drawn = torch.get_rng_state()
    try:
        factors = structure.factors(observed(cell, further, named, len(x), x, plan.identities()))
    except NotFused:
        torch.set_rng_state(drawn)
        raise
    convolutions, norms = [f.convolutions for f in before], [f.norms[0] for f in before]
    inputs = list(of_layers.relu_conv_bns_of_layers(convolutions, norms, states, backend=plan.backend))
    out = run(after, inputs, x.new_ones(len(after), 1), factors, graph, 1, plan.backend)
    if structure.concat == tuple(range(2, 2 + graph.nodes)):
        return out
    every = [*inputs, *out.chunk(graph.nodes, dim=1)]
    return torch.cat([every[i] for i in structure.concat], dim=1)


def _check_call(plan: DiscretePlan, states: list[Any], further: list[Any]) -> None:
    """Raise NotFused unless the kernels can compute a call with these arguments."""
    if global_hooks() or torch.jit.is_tracing():
        raise NotFused("it is traced, or global module hooks are registered")
    if len(states) < 2 or not all(isinstance(s, Tensor) and s.dim() == 4 and s.numel() for s in states):
        raise NotFused("its first two arguments are no images")
    if not all(type(a) in PLAIN for a in further):
        raise NotFused("it is given other arguments than two states and numbers")
    if why := lacks_kernel(plan.backend, states[0].device, arithmetic(states[0])):
        raise NotFused(why)


def lacks_kernel(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why no fused kernels compute discrete cells there, or None: on a GPU each call's observation would wait for it."""
    if all(of_layers.kernels_of(op, backend, device, dtype) == "cpu" for op in ("mixed_cell", "relu_conv_bn")):
        return None
    where = f"{device} in {str(dtype).removeprefix('torch.')}"
    return f"discrete cells need the C++ kernels, and backend {backend!r} does not choose them on {where}"


def _check_cell(cell: nn.Module, plan: DiscretePlan, found: list[Any]) -> None:
    """Raise NotFused unless a cell's layers and what its forward reads are as verified."""
    structure: Any = plan.structure
    for number, (layer, layout) in enumerate(zip(plan.candidates(cell), plan.layouts, strict=True)):
        takes = isinstance(layout, FusableCandidate) if number in structure.operations else as_preprocess(layout) is not None
        if not takes or not fits(layer, layout, found[number]):
            raise NotFused(f"layer {number}, {type(layer).__name__}, has hooks, drops out or is no layer that was verified")
    if plan.reads is not None and not plan.reads.same(cell):
        raise NotFused("what its forward reads has changed since it was verified")


def _check_shapes(graph: Graph, before: list[Layers], channels: set[int], states: list[Tensor]) -> None:
    """Raise NotFused unless states, preprocess layers and operations agree in images, channels and pixels."""
    weights = [[c.weight for c in layers.convolutions] for layers in before]
    widths = {sum(len(w) for w in each) for each in weights} | channels
    sizes = {(len(s), s.shape[2] / len(w), s.shape[3] / len(w)) for s, w in zip(states, weights, strict=True)}
    read = all(s.shape[1] == w[0].shape[1] for s, w in zip(states, weights, strict=True))
    halved = all(side % graph.stride == 0 for size in sizes for side in size[1:])
    if len(widths - {0}) > 1 or len(sizes) > 1 or not read or not halved:
        raise NotFused("its states and layers differ in images, channels or pixels, or it halves an odd side")


@lru_cache(maxsize=1024)
def _graph(edges: tuple[Edge, ...]) -> Graph | None:
    """Build a graph; None if its edges' strides do not fit."""
    try:
        return Graph(2, edges[-1].node + 1, edges)
    except ValueError:
        return None
