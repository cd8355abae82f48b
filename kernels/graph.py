"""The graph of a cell: its edges, their candidates, and how their weights are packed.

Notation: C channels that pass through a candidate, E edges, B BatchNorms.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from typing import NamedTuple

from fastdarts.kernels.rows import Candidate

Shape = tuple[int, int, int, int]
KERNEL = {
    Candidate.SEP_CONV_3: 3,
    Candidate.SEP_CONV_5: 5,
    Candidate.SEP_CONV_7: 7,
    Candidate.DIL_CONV_3: 3,
    Candidate.DIL_CONV_5: 5,
    Candidate.CONV_1: 1,
    Candidate.CONV_3: 3,
}
SEPARABLE = (Candidate.SEP_CONV_3, Candidate.SEP_CONV_5, Candidate.SEP_CONV_7)
DILATED = (Candidate.DIL_CONV_3, Candidate.DIL_CONV_5)
DENSE = (Candidate.CONV_1, Candidate.CONV_3)
PLAIN_POOLS = (Candidate.PLAIN_MAX_POOL_3, Candidate.PLAIN_AVG_POOL_3)
WITHOUT_NORM = (Candidate.NONE, *PLAIN_POOLS)


def convolutions(candidate: Candidate, stride: int, C: int) -> list[Shape]:
    """Return the weights of a candidate on C channels, in the order of application."""
    if candidate == Candidate.SKIP:
        return [(C // 2, C, 1, 1)] * 2 if stride == 2 else []
    if candidate not in KERNEL:
        return []
    size = KERNEL[candidate]
    if candidate in DENSE:
        return [(C, C, size, size)]
    return [(C, 1, size, size), (C, C, 1, 1)] * (2 if candidate in SEPARABLE else 1)


def norms(candidate: Candidate, stride: int) -> int:
    """Return the number of BatchNorms of a candidate."""
    if candidate in WITHOUT_NORM or (candidate == Candidate.SKIP and stride == 1):
        return 0
    return 2 if candidate in SEPARABLE else 1


class Edge(NamedTuple):
    """An edge from a state to a node: states 0 .. inputs-1 are the op's inputs, state inputs+j is node j."""

    source: int
    node: int
    stride: int
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Graph:
    """A cell: its edges, ordered by node. Each node sums its edges.

    Either all edges that leave inputs have stride 2 or none; those that leave nodes have stride 1. Raises ValueError.
    """

    inputs: int
    nodes: int
    edges: tuple[Edge, ...]
    # derived fields, stored because each call reads them
    stride: int = field(init=False, repr=False, compare=False)  # of the edges that leave inputs
    norms: int = field(init=False, repr=False, compare=False)  # B
    longest: int = field(init=False, repr=False, compare=False)  # candidates of the longest list
    _code: list[int] = field(init=False, repr=False, compare=False)
    _size: tuple[int, int] = field(init=False, repr=False, compare=False)  # a, b of a C**2 + b C numbers of weights

    def __post_init__(self) -> None:
        self._check()
        rows = [(e.source, e.node, e.stride, len(e.candidates), *map(int, e.candidates)) for e in self.edges]
        shapes = self.convolutions(2)
        pairs, singles = (sum(prod(shape) for shape in shapes if shape[1] == full) for full in (2, 1))
        derived = {
            "stride": self.edges[0].stride,
            "norms": sum(norms(c, edge.stride) for edge in self.edges for c in edge.candidates),
            "longest": max(len(edge.candidates) for edge in self.edges),
            "_code": [self.inputs, self.nodes, len(self.edges), *(number for row in rows for number in row)],
            "_size": (pairs // 4, singles // 2),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def _check(self) -> None:
        if self.inputs < 1 or self.nodes < 1:
            raise ValueError(f"a cell has at least one input and one node, got {self.inputs} and {self.nodes}")
        into = [edge.node for edge in self.edges]
        if into != sorted(into) or set(into) != set(range(self.nodes)):
            raise ValueError(f"edges must be ordered by node and reach each of {self.nodes} nodes, they lead into {into}")
        for e, (source, node, stride, candidates) in enumerate(self.edges):
            if not 0 <= source < self.inputs + node:
                raise ValueError(f"edge {e} leads from state {source} into node {node}, which is state {self.inputs + node}")
            if stride not in (1, 2) or (stride == 2 and source >= self.inputs):
                raise ValueError(f"edge {e} has stride {stride}: must be 1, or 2 from an input")
            if not candidates or len(set(candidates)) < len(candidates) or not set(candidates) <= set(Candidate):
                raise ValueError(f"edge {e} needs candidates, each a Candidate and without repetition, got {candidates}")
            if stride == 2 and (still := [Candidate(c).name for c in candidates if c in DENSE]):
                raise ValueError(f"edge {e} has stride 2, which {', '.join(still)} cannot have")
        if len({edge.stride for edge in self.edges if edge.source < self.inputs}) > 1:
            raise ValueError("all edges from inputs must have the same stride, so that nodes have the same size")

    def convolutions(self, C: int) -> list[Shape]:
        """Return the weights on C channels in packing order: edge by edge, candidate by candidate."""
        return [shape for edge in self.edges for c in edge.candidates for shape in convolutions(c, edge.stride, C)]

    def size(self, C: int) -> int:
        """Return the number of weights on C channels: sum(map(prod, convolutions(C)))."""
        return self._size[0] * C * C + self._size[1] * C

    def encode(self) -> list[int]:
        """Encode for the registered op: inputs, nodes, E, then for each edge source, node, stride, n, n candidates."""
        return self._code

    @staticmethod
    def decode(code: Sequence[int]) -> "Graph":
        """Decode the result of encode."""
        numbers = iter(code)
        inputs, nodes, E = islice(numbers, 3)
        edges = []
        for _ in range(E):
            source, node, stride, n = islice(numbers, 4)
            edges.append(Edge(source, node, stride, tuple(map(Candidate, islice(numbers, n)))))
        return Graph(inputs, nodes, tuple(edges))
