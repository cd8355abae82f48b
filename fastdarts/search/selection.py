"""How a discrete cell is read out of the mixed one."""

from fastdarts.genotype import Gene, Genotype
from fastdarts.spaces import Architecture, Kind, Space
from fastdarts.supernet import CellWeights


def argmax_genotype(space: Space, weights: dict[Kind, CellWeights]) -> Genotype | Architecture:
    """DARTS' rule: each node keeps the two edges whose best candidate besides none weighs most, and that candidate.

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


def _genes(space: Space, kind: Kind, weights: CellWeights) -> list[Gene]:
    ops = weights.ops if weights.edges is None else weights.ops * weights.edges[:, None]
    rows, genes = ops.tolist(), []
    for node in range(space.nodes):
        best: list[tuple[float, Gene]] = []
        for state, edge in enumerate(space.edges_of_node(node)):
            weight, name = _best(rows[edge], space.candidates(kind)[edge], without="none")
            best.append((weight, (name, state)))
        best.sort(key=lambda pair: -pair[0])
        genes += [gene for _, gene in best[:2]]
    return genes


def _best(row: list[float], names: tuple[str, ...], without: str | None = None) -> tuple[float, str]:
    """The largest weight and its candidate; a row may be padded."""
    named = ((w, name) for w, name in zip(row, names, strict=False) if name != without)
    return max(named, key=lambda pair: pair[0])
