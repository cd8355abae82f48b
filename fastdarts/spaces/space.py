"""A cell-based search space: which candidates each edge of each kind of cell may choose from."""

from dataclasses import dataclass
from typing import Literal, get_args

from fastdarts.spaces.candidates import CANDIDATES

Kind = Literal["normal", "reduce"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Space:
    """DARTS' cell: `nodes` intermediate nodes, each reading every earlier state; states 0 and 1 are the cell's inputs.

    Edges are numbered node by node: node i has the edges from states 0 .. i+1, and starts at edge 2 + 3 + ... + (i+1).
    `normal` and `reduce` hold a tuple of candidate names for each edge; they may differ from edge to edge.
    Raises ValueError when a list is missing, empty, repeats a name or has an unknown one.
    """

    name: str
    normal: tuple[tuple[str, ...], ...]
    reduce: tuple[tuple[str, ...], ...]
    nodes: int = 4

    def __post_init__(self) -> None:
        for kind in KINDS:
            lists = self.candidates(kind)
            if len(lists) != self.num_edges:
                raise ValueError(f"space {self.name}: {kind} cell has {self.num_edges} edges, got candidates of {len(lists)}")
            for edge, names in enumerate(lists):
                unknown = [n for n in names if n not in CANDIDATES]
                if unknown or not names or len(set(names)) < len(names):
                    problem = f"unknown {', '.join(unknown)}" if unknown else "an empty list or a repeated name"
                    raise ValueError(f"space {self.name}: {kind} edge {edge}: {problem}; known are {', '.join(CANDIDATES)}")
                if names == ("none",):
                    raise ValueError(f"space {self.name}: {kind} edge {edge} has no candidate besides none")

    @staticmethod
    def uniform(name: str, candidates: tuple[str, ...], nodes: int = 4) -> "Space":
        """The space whose every edge has the same candidates."""
        edges = nodes * (nodes + 3) // 2
        return Space(name, (candidates,) * edges, (candidates,) * edges, nodes)

    @property
    def num_edges(self) -> int:
        """Edges of a cell: 14 for four nodes."""
        return self.nodes * (self.nodes + 3) // 2

    def candidates(self, kind: Kind) -> tuple[tuple[str, ...], ...]:
        """The candidate names of each edge of the `normal` or `reduce` cell."""
        return self.normal if kind == "normal" else self.reduce

    def edges_of_node(self, node: int) -> range:
        """Numbers of the edges that end in `node` (0-based); the j-th of them comes from state j."""
        start = node * (node + 3) // 2
        return range(start, start + node + 2)
