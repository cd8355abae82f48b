"""A cell-based search space: the candidates of each edge of each kind of cell."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from fastdarts.spaces.candidates import Skeleton, known

Kind = Literal["normal", "reduce"]
KINDS: tuple[Kind, ...] = get_args(Kind)
INPUTS: dict[Skeleton, int] = {"darts": 2, "nasbench201": 1}  # number of input states of a cell


def count_edges(inputs: int, nodes: int) -> int:
    """Return the number of edges if every node reads every earlier state: 14 for two inputs and four nodes."""
    return nodes * (2 * inputs + nodes - 1) // 2


class Wiring(NamedTuple):
    """The connections of a discrete cell.

    inputs  their names; they are the states 0, 1, ...
    genes   (operation, source state, target node), by node, counted from 0
    concat  the concatenated states, or the single output state
    nodes   names of the nodes
    """

    inputs: tuple[str, ...]
    genes: tuple[tuple[str, int, int], ...]
    concat: tuple[int, ...]
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Space:
    """Cells of `inputs` inputs and `nodes` intermediate nodes, each reading every earlier state; the inputs come first.

    normal, reduce  a tuple of candidate names for each edge of that kind of cell; they may differ from edge to edge
    skeleton        the network around the cells: DARTS', or NAS-Bench-201's, which has no reduction cell

    Edges are numbered node by node: in DARTS' cell (two inputs) node i has the edges from states 0 .. i+1 and starts at edge
    2 + 3 + ... + (i+1).
    Raises ValueError if a list is missing, empty, repeats a name or has one that the skeleton does not know, and for a
    number of nodes or inputs that the skeleton does not have.
    """

    name: str
    normal: tuple[tuple[str, ...], ...]
    reduce: tuple[tuple[str, ...], ...] = ()
    nodes: int = 4
    inputs: int = 2
    skeleton: Skeleton = "darts"

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.inputs != INPUTS[self.skeleton]:
            has = f"{INPUTS[self.skeleton]} inputs and at least one node"
            raise ValueError(f"space {self.name}: a cell of {self.skeleton} has {has}, got {self.inputs} and {self.nodes}")
        if self.skeleton == "nasbench201" and (self.reduce or self.nodes != 3):
            raise ValueError(f"space {self.name}: NAS-Bench-201's network has cells of 3 nodes and no reduction cell")
        for kind in self.kinds:
            lists = self.candidates(kind)
            if len(lists) != self.num_edges:
                raise ValueError(f"space {self.name}: {kind} cell has {self.num_edges} edges, got candidates of {len(lists)}")
            for edge, names in enumerate(lists):
                self._check(f"space {self.name}: {kind} edge {edge}", names)

    def _check(self, where: str, names: tuple[str, ...]) -> None:
        offered = known(self.skeleton)
        unknown = [n for n in names if n not in offered]
        if unknown or not names or len(set(names)) < len(names):
            problem = f"unknown {', '.join(unknown)}" if unknown else "an empty list or a repeated name"
            own = "; register custom ones first (--modules)" if unknown else ""
            raise ValueError(f"{where}: {problem}; known are {', '.join(offered)}{own}")
        if names == ("none",):
            raise ValueError(f"{where} has no candidate besides none")

    @staticmethod
    def uniform(name: str, candidates: tuple[str, ...], nodes: int = 4) -> "Space":
        """Return the space of DARTS' cells with the same candidates on every edge."""
        edges = nodes * (nodes + 3) // 2
        return Space(name, (candidates,) * edges, (candidates,) * edges, nodes)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Return the kinds of its cells."""
        return KINDS if self.skeleton == "darts" else KINDS[:1]

    @property
    def num_edges(self) -> int:
        """Return the number of edges of a cell."""
        return count_edges(self.inputs, self.nodes)

    def candidates(self, kind: Kind) -> tuple[tuple[str, ...], ...]:
        """Return the candidate names of each edge of the `normal` or `reduce` cell."""
        return self.normal if kind == "normal" else self.reduce

    def edges_of_node(self, node: int) -> range:
        """Return the numbers of the edges into `node` (0-based); the j-th of them comes from state j."""
        start = count_edges(self.inputs, node)
        return range(start, start + node + self.inputs)
