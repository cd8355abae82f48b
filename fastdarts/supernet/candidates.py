"""The candidates as ops.mixed_cell computes them, and the names that DARTS' codebases give their convolutions and norms."""

from collections.abc import Sequence
from typing import NamedTuple

from fastdarts.ops.graph import Candidate, Edge, Graph
from fastdarts.spaces import Kind, Space


class Names(NamedTuple):
    """A candidate's code, and its convolutions and BatchNorms in the order in which they are applied, packed and drawn."""

    code: Candidate
    convolutions: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()


_TWICE = ("op.1", "op.2", "op.5", "op.6"), ("op.3", "op.7")  # ReLU, depthwise, 1x1, BN; again
_ONCE = ("op.1", "op.2"), ("op.3",)
_POOL = (), ("1",)
NAMES = {
    "none": Names(Candidate.NONE),
    "max_pool_3x3": Names(Candidate.MAX_POOL_3, *_POOL),
    "avg_pool_3x3": Names(Candidate.AVG_POOL_3, *_POOL),
    "skip_connect": Names(Candidate.SKIP),
    "sep_conv_3x3": Names(Candidate.SEP_CONV_3, *_TWICE),
    "sep_conv_5x5": Names(Candidate.SEP_CONV_5, *_TWICE),
    "dil_conv_3x3": Names(Candidate.DIL_CONV_3, *_ONCE),
    "dil_conv_5x5": Names(Candidate.DIL_CONV_5, *_ONCE),
}
STRIDED = NAMES | {"skip_connect": Names(Candidate.SKIP, ("conv_1", "conv_2"), ("bn",))}  # FactorizedReduce


def graph_of(space: Space, kind: Kind) -> Graph:
    """The edges of a cell: node i reads every earlier state; in a reduction cell those that leave the inputs stride."""
    edges = []
    for node in range(space.nodes):
        for state, number in enumerate(space.edges_of_node(node)):
            stride = 2 if kind == "reduce" and state < 2 else 1
            codes = tuple(NAMES[name].code for name in space.candidates(kind)[number])
            edges.append(Edge(state, node, stride, codes))
    return Graph(2, space.nodes, tuple(edges))


def names_of(space: Space, kind: Kind) -> tuple[list[str], list[str]]:
    """The names of a cell's convolutions and of its BatchNorms, in packing order: `EDGE._ops.CANDIDATE.NAME`."""
    convolutions, norms = [], []
    for number, (edge, names) in enumerate(zip(graph_of(space, kind).edges, space.candidates(kind), strict=True)):
        of_edge = names_of_edge(names, edge.stride)
        convolutions += [f"{number}.{name}" for name in of_edge[0]]
        norms += [f"{number}.{name}" for name in of_edge[1]]
    return convolutions, norms


def names_of_edge(candidates: Sequence[str], stride: int) -> tuple[list[str], list[str]]:
    """The names of an edge's convolutions and of its BatchNorms, in packing order: `_ops.CANDIDATE.NAME`."""
    rows = [(STRIDED if stride == 2 else NAMES)[name] for name in candidates]
    convolutions = [f"_ops.{position}.{part}" for position, row in enumerate(rows) for part in row.convolutions]
    return convolutions, [f"_ops.{position}.{part}" for position, row in enumerate(rows) for part in row.norms]
