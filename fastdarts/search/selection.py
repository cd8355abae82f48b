"""How a discrete cell is read out of the mixed one."""

from fastdarts.genotype import Gene, Genotype
from fastdarts.spaces import KINDS, Kind, Space
from fastdarts.supernet import CellWeights


def argmax_genotype(space: Space, weights: dict[Kind, CellWeights]) -> Genotype:
    """DARTS' rule: each node keeps the two edges whose best candidate besides none weighs most, and that candidate.

    With edge weights (PC-DARTS) the products of candidate and edge weight are compared. Ties go to the earlier edge
    and candidate; a node's genes are in the order of their strength.
    """
    cells = {kind: tuple(_genes(space, kind, weights[kind])) for kind in KINDS}
    concat = tuple(range(2, 2 + space.nodes))
    return Genotype(cells["normal"], concat, cells["reduce"], concat)


def _genes(space: Space, kind: Kind, weights: CellWeights) -> list[Gene]:
    ops = weights.ops if weights.edges is None else weights.ops * weights.edges[:, None]
    rows, genes = ops.tolist(), []
    for node in range(space.nodes):
        best: list[tuple[float, Gene]] = []
        for state, edge in enumerate(space.edges_of_node(node)):
            named = zip(rows[edge], space.candidates(kind)[edge], strict=False)  # a row may be padded
            weight, name = max(((w, name) for w, name in named if name != "none"), key=lambda pair: pair[0])
            best.append((weight, (name, state)))
        best.sort(key=lambda pair: -pair[0])
        genes += [gene for _, gene in best[:2]]
    return genes
