"""Derivation of a discrete cell from the weights of the mixed one."""

from collections.abc import Callable
from dataclasses import replace

import torch

from fastdarts.spaces import Architecture, Kind, Space
from fastdarts.spaces.genotype import Gene, Genotype
from fastdarts.supernet import CellWeights

SKIP = "skip_connect"
INPUTS = 2  # that a node of DARTS' derived cell keeps
Selection = Callable[[Space, dict[Kind, CellWeights]], Genotype | Architecture]


def argmax_genotype(space: Space, weights: dict[Kind, CellWeights]) -> Genotype | Architecture:
    """Apply DARTS' rule: each node keeps the two edges whose best candidate besides none has most weight, and that candidate.

    With edge weights (PC-DARTS) the products of candidate and edge weight are compared. Ties go to the earlier edge
    and candidate; a node's genes are in the order of their strength.
    In NAS-Bench-201 every edge keeps its best candidate, which may be none.
    """
    if space.skeleton == "nasbench201":
        rows = zip(weights["normal"].ops.tolist(), space.normal, strict=True)
        return Architecture(tuple(_best(row, names)[1] for row, names in rows))
    cells = {kind: tuple(_genes(space, kind, weights[kind])) for kind in space.kinds}
    concat = tuple(range(2, 2 + space.nodes))
    return Genotype(cells["normal"], concat, cells["reduce"], concat)


def limit_skips(space: Space, weights: dict[Kind, CellWeights], most: int, selection: Selection = argmax_genotype) -> Genotype:
    """Apply `selection`, with at most `most` skips in the normal cell (P-DARTS, section 3.3).

    While there are more, remove the weakest of the cell's skips from its edge's candidates and derive the cell again: the
    edge may stay with another operation, or another edge takes its place. Raises ValueError as check_skip_limit does.
    """
    check_skip_limit(space)
    while True:
        genotype = selection(space, weights)
        if isinstance(genotype, Architecture):
            raise ValueError("skip_limit: skips are limited in DARTS' cells only, but the selection returned another kind")
        skips = [space.edges_of_node(node - 2)[state] for op, node, state in genotype.genes("normal") if op == SKIP]
        if len(skips) <= most:
            return genotype
        space, weights = _without_weakest_skip(space, weights, skips)


def check_skip_limit(space: Space, candidates: int | None = None) -> None:
    """Raise ValueError if a normal cell's skips cannot be limited, because an edge may have no other candidate left.

    candidates  minimum number left of an edge's list; None: all of it
    """
    if space.skeleton != "darts":
        raise ValueError(f"skip_limit: skips are limited in DARTS' cells only, not in those of space {space.name}")
    for edge, names in enumerate(space.normal):
        left = len(names) if candidates is None else min(candidates, len(names))
        if left <= len({"none", SKIP}.intersection(names)):
            unavoidable = f"only none and {SKIP} of its candidates {', '.join(names)} may be left"
            raise ValueError(f"skip_limit: normal edge {edge} of space {space.name} needs its skip, {unavoidable}")


def _without_weakest_skip(
    space: Space, weights: dict[Kind, CellWeights], edges: list[int]
) -> tuple[Space, dict[Kind, CellWeights]]:
    """Return both without the skip of smallest weight among the normal cell's `edges`."""
    ops, by_edge = weights["normal"]
    strength = ops if by_edge is None else ops * by_edge[:, None]
    edge = min(edges, key=lambda e: strength[e, space.normal[e].index(SKIP)].item())
    position = space.normal[edge].index(SKIP)
    row = ops[edge]
    ops = ops.clone()
    ops[edge] = torch.cat([row[:position], row[position + 1 :], row.new_zeros(1)])
    names = tuple(name for name in space.normal[edge] if name != SKIP)
    normal = (*space.normal[:edge], names, *space.normal[edge + 1 :])
    return replace(space, normal=normal), weights | {"normal": CellWeights(ops, by_edge)}


def _genes(space: Space, kind: Kind, weights: CellWeights) -> list[Gene]:
    ops = weights.ops if weights.edges is None else weights.ops * weights.edges[:, None]
    rows, genes = ops.tolist(), []
    for node in range(space.nodes):
        best: list[tuple[float, Gene]] = []
        for state, edge in enumerate(space.edges_of_node(node)):
            weight, name = _best(rows[edge], space.candidates(kind)[edge], without="none")
            best.append((weight, (name, state)))
        best.sort(key=lambda pair: -pair[0])
        genes += [gene for _, gene in best[:INPUTS]]
    return genes


def _best(row: list[float], names: tuple[str, ...], without: str | None = None) -> tuple[float, str]:
    """Return the largest weight and its candidate; a row may be padded."""
    named = ((w, name) for w, name in zip(row, names, strict=False) if name != without)
    return max(named, key=lambda pair: pair[0])
