"""A discrete cell pair: text and JSON formats, and validation.

The text is `Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=...)`, as DARTS' descendants
print and read it; it is parsed as data, never evaluated.
"""

import ast
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from fastdarts.spaces import Architecture, Kind, Wiring

Pair = tuple[str, int]  # (operation, number of the input state)
Triple = tuple[str, int, int]  # (operation, number of the node's state, number of the input state)
Gene = Pair | Triple
FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
COLLAPSE_SKIPS, COLLAPSE_OF = 5, 8  # skips among a cell's operations from which on a search counts as collapsed


class GenotypeError(ValueError):
    """A genotype that cannot be read or does not describe a cell."""


@dataclass(frozen=True)
class Genotype:
    """Two cells; states 0 and 1 are the two previous cells' outputs, state 2 + i is node i.

    The genes of a cell are pairs (operation, input), of which 2i and 2i + 1 lead to node i; or, as FairDARTS' (Chu et al.,
    ECCV 2020), triples (operation, node, input) by node, any number to a node and on an edge. A node without inputs vanishes,
    with the genes that read it.
    """

    normal: tuple[Gene, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Gene, ...]
    reduce_concat: tuple[int, ...]

    def __str__(self) -> str:
        return (
            f"Genotype(normal={list(self.normal)}, normal_concat={_concat_text(self.normal_concat)}, "
            f"reduce={list(self.reduce)}, reduce_concat={_concat_text(self.reduce_concat)})"
        )

    def to_json(self, **extra: Any) -> str:
        """Return the JSON record: the four fields, `text` as DARTS prints it, and the caller's extra keys."""
        record = {
            "normal": [list(g) for g in self.normal],
            "normal_concat": list(self.normal_concat),
            "reduce": [list(g) for g in self.reduce],
            "reduce_concat": list(self.reduce_concat),
            "text": str(self),
        }
        return json.dumps(record | extra, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> "Genotype":
        """Parse the result of to_json; unknown keys are ignored. Raises GenotypeError."""
        try:
            record = json.loads(text)
            return Genotype.from_fields({name: record[name] for name in FIELDS})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise GenotypeError(f"not the JSON of a genotype: {error}") from error

    @staticmethod
    def from_text(text: str) -> "Genotype":
        """Parse the `Genotype(...)` text of any DARTS codebase. Raises GenotypeError.

        Genes are lists or tuples, flat or by node, concat is a range or a list, numbers are Python's or numpy's;
        `genotypes.Genotype(...)` is accepted too. pasted.py finds it in longer text.
        """
        try:
            call = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deep
            raise GenotypeError(f"not a genotype: {text[:80]!r}") from error
        if not (isinstance(call, ast.Call) and _name(call.func) == "Genotype"):
            raise GenotypeError(f"expected Genotype(...), got {text[:80]!r}")
        args = dict(zip(FIELDS, call.args, strict=False)) | {k.arg: k.value for k in call.keywords}
        if set(args) != set(FIELDS) or len(call.args) + len(call.keywords) != len(FIELDS):
            raise GenotypeError(f"a genotype has the fields {', '.join(FIELDS)}; got {', '.join(map(str, args))}")
        return Genotype.from_fields({str(name): _literal(node) for name, node in args.items()})

    @staticmethod
    def from_fields(fields: dict[str, Any]) -> "Genotype":
        """Build and check a genotype from plain lists, whose genes may be nested by node. Raises GenotypeError."""
        cells = {kind: _genes(kind, fields[kind]) for kind in ("normal", "reduce")}
        try:
            concat = {name: tuple(fields[name]) for name in ("normal_concat", "reduce_concat")}
        except TypeError as error:
            raise GenotypeError(f"the concatenated states must be a range or a list, as in range(2, 6): {error}") from error
        if not all(type(i) is int for numbers in concat.values() for i in numbers):
            raise GenotypeError(f"concatenated states must be integers, got {concat}")
        genotype = Genotype(cells["normal"], concat["normal_concat"], cells["reduce"], concat["reduce_concat"])
        genotype.check()
        return genotype

    def check(self) -> None:
        """Raise GenotypeError unless in both cells each gene reads an earlier state and some state is concatenated."""
        for kind in ("normal", "reduce"):
            genes, concat = getattr(self, kind), getattr(self, f"{kind}_concat")
            if not genes or (len(genes) % 2 and not self.has_triples(kind)):
                raise GenotypeError(f"{kind} cell: expected two genes per node, got {len(genes)} genes; {_TRIPLES}")
            triples = _triples(genes)
            for number, (op, node, state) in enumerate(triples):
                if node < 2 or node < triples[max(0, number - 1)][1]:
                    raise GenotypeError(
                        f"{kind} cell: gene {number} ({op!r}) leads to state {node}: nodes are 2, 3, ..., in order"
                    )
                if not 0 <= state < node:
                    raise GenotypeError(f"{kind} cell: gene {number} ({op!r}) reads state {state}, which is not before it")
            states = {0, 1} | {node for _, node, _ in self.genes(kind)}
            last = max(states)
            if not concat or min(concat) < 0 or (max(concat) > last and not self.has_triples(kind)):
                raise GenotypeError(f"{kind} cell: concatenates {list(concat)}, but its states are 0..{last}")
            if not states.intersection(concat):
                raise GenotypeError(f"{kind} cell: concatenates {list(concat)}, nodes that have no inputs")

    def has_triples(self, kind: str) -> bool:
        """Return whether the genes of the `normal` or `reduce` cell are triples."""
        return any(len(gene) == 3 for gene in getattr(self, kind))

    def genes(self, kind: str) -> tuple[Triple, ...]:
        """Return the genes of the `normal` or `reduce` cell as triples, without those that read a node without inputs."""
        states, found = {0, 1}, []
        for gene in _triples(getattr(self, kind)):
            if gene[2] in states:  # genes are ordered by node: all genes of that node have been seen
                states.add(gene[1])
                found.append(gene)
        return tuple(found)

    def operations(self, kind: str) -> list[str]:
        """Return the operations of the `normal` or `reduce` cell, in the genes' order."""
        return [gene[0] for gene in getattr(self, kind)]

    def wirings(self) -> dict[Kind, Wiring]:
        """Return the connections of its cells, without vanished nodes."""
        return {"normal": self._wiring("normal"), "reduce": self._wiring("reduce")}

    def _wiring(self, kind: Kind) -> Wiring:
        genes = self.genes(kind)
        nodes = sorted({node for _, node, _ in genes})
        place = {state: number for number, state in enumerate([0, 1, *nodes])}
        wired = tuple((op, place[state], place[node] - 2) for op, node, state in genes)
        concat = tuple(place[state] for state in getattr(self, f"{kind}_concat") if state in place)
        return Wiring(("c_{k-2}", "c_{k-1}"), wired, concat, tuple(str(node - 2) for node in nodes))


def read_architecture(text: str) -> Genotype | Architecture:
    """Parse a discrete architecture: `Genotype(...)`, or NAS-Bench-201's `|op~0|+...`.

    Raises GenotypeError, ArchitectureError (both ValueError).
    """
    return Architecture.from_text(text) if text.lstrip().startswith("|") else Genotype.from_text(text)


def read_architecture_json(text: str) -> Genotype | Architecture:
    """Parse the result of either to_json. Raises GenotypeError, ArchitectureError (both ValueError)."""
    return Architecture.from_json(text) if '"ops":' in text else Genotype.from_json(text)


def collapse_line(operations: int) -> int:
    """Return the number of skips among a cell's `operations` that counts as a collapse: COLLAPSE_SKIPS of 8, in proportion."""
    return math.ceil(operations * COLLAPSE_SKIPS / COLLAPSE_OF)


def _concat_text(concat: tuple[int, ...]) -> str:
    span = range(concat[0], concat[-1] + 1)
    return f"range({span.start}, {span.stop})" if tuple(span) == concat else str(list(concat))


def _triples(genes: tuple[Gene, ...]) -> list[Triple]:
    """Return the genes of a cell as triples."""
    return [(gene[0], 2 + number // 2, gene[1]) if len(gene) == 2 else gene for number, gene in enumerate(genes)]


def _genes(kind: str, cell: Any) -> tuple[Gene, ...]:
    """Return the genes of a cell, from a flat list or a list of pairs for each node. Raises GenotypeError."""
    try:
        genes = [tuple(gene) for gene in cell]
        if genes and all(not isinstance(part, str) for node in genes for part in node):
            two = all(len(node) == 2 for node in genes)
            nested = [(number, tuple(gene)) for number, node in enumerate(genes, start=2) for gene in node]
            genes = [gene if two else (gene[0], number, *gene[1:]) for number, gene in nested]
    except (TypeError, IndexError) as error:
        raise GenotypeError(f"{kind} cell: genes are (operation, input) pairs: {error}") from error
    if len({len(gene) for gene in genes}) > 1 or any(tuple(map(type, gene)) not in _GENES for gene in genes):
        raise GenotypeError(
            f"{kind} cell: genes are (operation, input) pairs, or (operation, node, input) triples, got {genes}"
        )
    return tuple(genes)


def _name(node: ast.expr) -> str:
    """Return the last part of a dotted name, "" for anything else."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _literal(node: ast.expr) -> Any:
    """Evaluate a literal whose parts may be ranges, or numbers in numpy's text, np.int64(2). Raises GenotypeError."""
    try:
        return _value(node)
    except (TypeError, ValueError, RecursionError, MemoryError) as error:
        raise GenotypeError(f"neither a literal nor a range: {ast.unparse(node)[:120]}") from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(part) for part in node.elts]
    if isinstance(node, ast.Call) and not node.keywords:
        name, arguments = _name(node.func), [_value(argument) for argument in node.args]
        if name == "range" and len(numbers := range(*arguments)) <= _MOST_STATES:
            return list(numbers)
        if name in ("list", "tuple") and len(arguments) == 1:
            return list(arguments[0])
        if _NUMBER.fullmatch(name) and len(arguments) == 1 and type(arguments[0]) is int:
            return arguments[0]
    return ast.literal_eval(node)


_TRIPLES = "cells with other numbers of inputs (FairDARTS) are written as triples (operation, node, input), nodes from 2 on"
_GENES = ((str, int), (str, int, int))
_MOST_STATES = 1000
_NUMBER = re.compile(r"u?int\d*")
