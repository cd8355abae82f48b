"""NAS-Bench-201 (Dong and Yang, ICLR 2020): five candidates on each of six edges, 15,625 cells, as names.

Node 0 is the cell's input, node 3 its output; an edge leads from each node to each later one.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastdarts.spaces.candidates import known
from fastdarts.spaces.space import Kind, Space, Wiring

# The order is part of every checkpoint of its codebase.
PRIMITIVES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NODES = 3  # without the input
EDGES = tuple((source, node) for node in range(1, NODES + 1) for source in range(node))  # as the text lists them

NASBENCH201 = Space("nasbench201", (PRIMITIVES,) * len(EDGES), nodes=NODES, inputs=1, skeleton="nasbench201")
Nodes = tuple[tuple[tuple[str, int], ...], ...]
_NODE, _PART = re.compile(r"^\|(?:[^|+~]+~\d\|)+$"), re.compile(r"([^|+~]+)~(\d)")


class ArchitectureError(ValueError):
    """Not a cell of NAS-Bench-201; the message says why."""


@dataclass(frozen=True)
class Architecture:
    """A cell of NAS-Bench-201: the operation of each edge, in the order 1<-0, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2.

    Its text is NAS-Bench-201's, `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`. Raises ArchitectureError.
    """

    ops: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ops) != len(EDGES):
            raise ArchitectureError(f"a cell of NAS-Bench-201 has {len(EDGES)} edges, got {len(self.ops)} operations")
        offered = known("nasbench201")
        if unknown := [str(op) for op in self.ops if op not in offered]:
            raise ArchitectureError(f"unknown {', '.join(unknown)}; NAS-Bench-201 has {', '.join(offered)}")

    def __str__(self) -> str:
        return "+".join(f"|{'|'.join(f'{op}~{source}' for op, source in node)}|" for node in self.nodes)

    @staticmethod
    def from_text(text: str) -> "Architecture":
        """Parse the result of str; a node's parts may have any order. Raises ArchitectureError."""
        nodes = [_PART.findall(node) if _NODE.match(node) else [] for node in text.strip().split("+")]
        edges = sorted((into, int(source), op) for into, node in enumerate(nodes, 1) for op, source in node)
        if tuple((source, into) for into, source, _ in edges) != EDGES:
            raise ArchitectureError(f"not |op~0|+|op~0|op~1|+|op~0|op~1|op~2|: {text[:120]!r}")
        return Architecture(tuple(op for _, _, op in edges))

    @property
    def nodes(self) -> Nodes:
        """Return, as NAS-Bench-201's genotypes nest it, the (operation, source) pairs of each node after the input."""
        pairs = zip(self.ops, EDGES, strict=True)
        inputs = [(into, (op, source)) for op, (source, into) in pairs]
        return tuple(tuple(pair for into, pair in inputs if into == node) for node in range(1, NODES + 1))

    @staticmethod
    def from_nodes(nodes: Sequence[Sequence[Sequence[Any]]]) -> "Architecture":
        """Build from the format of `nodes`, lists or tuples, a node's pairs in any order. Raises ArchitectureError."""
        try:
            ops = {(source, node): op for node, pairs in enumerate(nodes, 1) for op, source in pairs}
            count = sum(len(pairs) for pairs in nodes)
        except (TypeError, ValueError) as error:
            raise ArchitectureError(f"a node is a list of (operation, source) pairs, got {nodes!r:.120}") from error
        if set(ops) != set(EDGES) or count != len(EDGES):
            raise ArchitectureError(f"each of three nodes must read every earlier one once, got {nodes!r:.120}")
        return Architecture(tuple(ops[edge] for edge in EDGES))

    @property
    def number(self) -> int:
        """Return 0 .. 15624: the operations' positions in PRIMITIVES as base-5 digits, the first edge's the highest.

        NAS-Bench-201's own index differs: its files list the cells in another order (lookup.Table.index).
        Raises ArchitectureError for a cell with a custom candidate.
        """
        number = 0
        if own := [op for op in self.ops if op not in PRIMITIVES]:
            raise ArchitectureError(f"the benchmark has no cell with {own[0]}")
        for op in self.ops:
            number = number * len(PRIMITIVES) + PRIMITIVES.index(op)
        return number

    @staticmethod
    def from_number(number: int) -> "Architecture":
        """Return the architecture of a `number`. Raises ArchitectureError."""
        base, cells = len(PRIMITIVES), len(PRIMITIVES) ** len(EDGES)
        if not 0 <= number < cells:
            raise ArchitectureError(f"no cell {number}; cells are 0 to {cells - 1}")
        return Architecture(tuple(PRIMITIVES[number // base**place % base] for place in reversed(range(len(EDGES)))))

    def to_json(self, **extra: Any) -> str:
        """Return the JSON record: the operations, `text`, and the caller's extra keys."""
        return json.dumps({"ops": list(self.ops), "text": str(self)} | extra, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> "Architecture":
        """Parse the result of to_json; unknown keys are ignored. Raises ArchitectureError."""
        try:
            return Architecture(tuple(json.loads(text)["ops"]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ArchitectureError(f"not the JSON of a cell of NAS-Bench-201: {error}") from error

    def operations(self, kind: str) -> list[str]:
        """Return the operations of the only kind of cell, "normal"."""
        return list(self.ops) if kind == "normal" else []

    def wirings(self) -> dict[Kind, Wiring]:
        """Return the connections of its cell."""
        genes = tuple((op, source, node - 1) for op, (source, node) in zip(self.ops, EDGES, strict=True))
        return {"normal": Wiring(("input",), genes, (NODES,), tuple(map(str, range(NODES))))}
