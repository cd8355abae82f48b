"""The candidates as ops.mixed_cell computes them, and their codebases' names for the convolutions and norms."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from fastdarts.kernels.graph import Candidate, Edge, Graph
from fastdarts.spaces import Kind, Skeleton, Space


class Names(NamedTuple):
    """A candidate's code, and its convolutions and BatchNorms in the order of application, packing and initialisation."""

    code: Candidate
    convolutions: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()


TWICE = ("op.1", "op.2", "op.5", "op.6"), ("op.3", "op.7")  # ReLU, depthwise, 1x1, BN; again
_ONCE = ("op.1", "op.2"), ("op.3",)
_DENSE = ("op.1",), ("op.2",)  # ReLU, convolution, BN
_POOL = (), ("1",)
NAMES = {
    "none": Names(Candidate.NONE),
    "max_pool_3x3": Names(Candidate.MAX_POOL_3, *_POOL),
    "avg_pool_3x3": Names(Candidate.AVG_POOL_3, *_POOL),
    "skip_connect": Names(Candidate.SKIP),
    "sep_conv_3x3": Names(Candidate.SEP_CONV_3, *TWICE),
    "sep_conv_5x5": Names(Candidate.SEP_CONV_5, *TWICE),
    "dil_conv_3x3": Names(Candidate.DIL_CONV_3, *_ONCE),
    "dil_conv_5x5": Names(Candidate.DIL_CONV_5, *_ONCE),
}
STRIDED = NAMES | {"skip_connect": Names(Candidate.SKIP, ("conv_1", "conv_2"), ("bn",))}  # FactorizedReduce
NASBENCH201 = {
    "none": Names(Candidate.NONE),
    "skip_connect": Names(Candidate.SKIP),
    "nor_conv_1x1": Names(Candidate.CONV_1, *_DENSE),
    "nor_conv_3x3": Names(Candidate.CONV_3, *_DENSE),
    "avg_pool_3x3": Names(Candidate.PLAIN_AVG_POOL_3),
}


def fused(skeleton: Skeleton, stride: int = 1) -> dict[str, Names]:
    """Return the candidates that ops.mixed_cell computes, by name; the others run eagerly (supernet.eager_candidates)."""
    if skeleton == "nasbench201":
        return NASBENCH201
    return STRIDED if stride == 2 else NAMES


def stride_of(kind: Kind, state: int) -> int:
    """Return an edge's stride: 2 for those that leave the inputs of a reduction cell."""
    return 2 if kind == "reduce" and state < 2 else 1


def graph_of(space: Space, kind: Kind, omitted: Sequence[Collection[int]] | None = None) -> Graph:
    """Return the edges of a cell: node i reads every earlier state.

    omitted  for each edge the positions of the candidates to omit; an edge without any other candidate gets NONE
    """
    edges, rows = [], fused(space.skeleton)
    for node in range(space.nodes):
        for state, number in enumerate(space.edges_of_node(node)):
            left_out = omitted[number] if omitted else ()
            codes = tuple(rows[n].code for p, n in enumerate(space.candidates(kind)[number]) if p not in left_out)
            edges.append(Edge(state, node, stride_of(kind, state), codes or (Candidate.NONE,)))
    return Graph(space.inputs, space.nodes, tuple(edges))


def edge_names(space: Space) -> list[str]:
    """Return the codebase's names of a cell's edges: `EDGE._ops`, in NAS-Bench-201 `NODE<-SOURCE`, node 0 being the input."""
    if space.skeleton == "darts":
        return [f"{number}._ops" for number in range(space.num_edges)]
    return [f"{node + 1}<-{state}" for node in range(space.nodes) for state in range(node + 1)]


def names_of(space: Space, kind: Kind) -> tuple[list[str], list[str]]:
    """Return the names of a cell's convolutions and of its BatchNorms, in packing order: `EDGE.CANDIDATE.NAME`."""
    convolutions, norms = [], []
    states = [state for node in range(space.nodes) for state, _ in enumerate(space.edges_of_node(node))]
    for prefix, state, names in zip(edge_names(space), states, space.candidates(kind), strict=True):
        of_edge = parts_of(fused(space.skeleton, stride_of(kind, state)), names)
        convolutions += [f"{prefix}.{name}" for name in of_edge[0]]
        norms += [f"{prefix}.{name}" for name in of_edge[1]]
    return convolutions, norms


def parts_of(rows: dict[str, Names], candidates: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of an edge's convolutions and of its BatchNorms, in packing order: `CANDIDATE.NAME`."""
    listed = [(position, rows[name]) for position, name in enumerate(candidates) if name in rows]
    convolutions = [f"{position}.{part}" for position, row in listed for part in row.convolutions]
    return convolutions, [f"{position}.{part}" for position, row in listed for part in row.norms]


def names_of_edge(candidates: Sequence[str], stride: int) -> tuple[list[str], list[str]]:
    """Return the names of an edge's convolutions and BatchNorms in DARTS, in packing order: `_ops.CANDIDATE.NAME`."""
    convolutions, norms = parts_of(fused("darts", stride), candidates)
    return [f"_ops.{name}" for name in convolutions], [f"_ops.{name}" for name in norms]
