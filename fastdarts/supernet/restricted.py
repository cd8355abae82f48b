"""Some of a cell's candidates: the part of its packed tensors that they need.

Notation: C channels that pass through a candidate, E edges, K candidates of the longest list.
"""

from collections.abc import Collection, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from fastdarts.kernels.graph import Candidate, Graph, convolutions, norms


class Restriction(NamedTuple):
    """A cell with fewer candidates.

    graph    its edges; one without candidates has none, which adds nothing
    columns  int64 (E * K',): of its weights (E, K') among the whole cell's, flattened
    weights  int64: its numbers among the packed convolutions
    norms    int64: its numbers among the packed running statistics
    """

    graph: Graph
    columns: Tensor
    weights: Tensor
    norms: Tensor


def restriction(graph: Graph, kept: Sequence[Collection[int]], C: int, device: torch.device) -> Restriction:
    """Return a cell's part with the candidates at the places `kept` of each edge."""
    edges, weights, statistics, rows = [], [], [], []
    weight = norm = 0
    for edge, places in zip(graph.edges, kept, strict=True):
        for place, candidate in enumerate(edge.candidates):
            count, of_norm = sum(map(prod, convolutions(candidate, edge.stride, C))), norms(candidate, edge.stride) * C
            if place in places:
                weights += range(weight, weight + count)
                statistics += range(norm, norm + of_norm)
            weight, norm = weight + count, norm + of_norm
        rows.append(sorted(places))
        codes = tuple(edge.candidates[place] for place in rows[-1])
        edges.append(edge._replace(candidates=codes or (Candidate.NONE,)))
    longest = max(1, *map(len, rows))
    columns = [e * graph.longest + place for e, row in enumerate(rows) for place in row + [0] * (longest - len(row))]
    part = Graph(graph.inputs, graph.nodes, tuple(edges))
    return Restriction(part, *(torch.tensor(each, dtype=torch.int64, device=device) for each in (columns, weights, statistics)))
