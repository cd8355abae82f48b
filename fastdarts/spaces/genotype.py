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

Gene = tuple[str, int]  # (operation, number of the input state)
FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
COLLAPSE_SKIPS, COLLAPSE_OF = 5, 8  # skips among a cell's operations from which on a search counts as collapsed


class GenotypeError(ValueError):
    """A genotype that cannot be read or does not describe a cell."""


@dataclass(frozen=True)
class Genotype:
    """Two cells; gene 2i and 2i + 1 are the inputs of node i, states 0 and 1 are the two previous cells' outputs."""

    normal: tuple[Gene, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Gene, ...]
    reduce_concat: tuple[int, ...]

    def __str__(self) -> str:
        normal, reduce = ([(op, i) for op, i in genes] for genes in (self.normal, self.reduce))
        return (
            f"Genotype(normal={normal}, normal_concat={_concat_text(self.normal_concat)}, "
            f"reduce={reduce}, reduce_concat={_concat_text(self.reduce_concat)})"
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
        """Parse the `Genotype(...)` text of any DARTS codebase: genes as lists or tuples, flat or by node, concat as a
        range or a list, numbers of Python or numpy, `genotypes.Genotype(...)` too. pasted.py finds it in longer text.

        Raises GenotypeError.
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
        genes = [gene for cell in cells.values() for gene in cell]
        if not all(type(op) is str and type(state) is int for op, state in genes):
            raise GenotypeError(f"genes must be (name, integer) pairs, got {genes}")
        if not all(type(i) is int for numbers in concat.values() for i in numbers):
            raise GenotypeError(f"concatenated states must be integers, got {concat}")
        genotype = Genotype(cells["normal"], concat["normal_concat"], cells["reduce"], concat["reduce_concat"])
        genotype.check()
        return genotype

    def check(self) -> None:
        """Raise GenotypeError unless both cells are well formed: two inputs a node, each from an earlier state."""
        for kind in ("normal", "reduce"):
            genes, concat = getattr(self, kind), getattr(self, f"{kind}_concat")
            if not genes or len(genes) % 2:
                raise GenotypeError(f"{kind} cell: expected two genes per node, got {len(genes)} genes; {_TWO}")
            for number, (op, state) in enumerate(genes):
                if not 0 <= state < 2 + number // 2:
                    raise GenotypeError(f"{kind} cell: gene {number} ({op!r}) reads state {state}, which is not before it")
            states = 2 + len(genes) // 2
            if not concat or any(not 0 <= i < states for i in concat):
                raise GenotypeError(f"{kind} cell: concatenates {list(concat)}, but its states are 0..{states - 1}")

    def operations(self, kind: str) -> list[str]:
        """Return the operations of the `normal` or `reduce` cell, in the genes' order."""
        return [op for op, _ in getattr(self, kind)]

    def wirings(self) -> dict[Kind, Wiring]:
        """Return the connections of its cells."""
        inputs = ("c_{k-2}", "c_{k-1}")
        return {
            kind: Wiring(inputs, tuple((op, state, gene // 2) for gene, (op, state) in enumerate(getattr(self, kind))), concat)
            for kind, concat in (("normal", self.normal_concat), ("reduce", self.reduce_concat))
        }


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


def _genes(kind: str, cell: Any) -> tuple[Gene, ...]:
    """Return the genes of a cell, from a flat list or a list for each node. Raises GenotypeError."""
    try:
        nodes = [list(gene) for gene in cell]
        if nodes and all(not isinstance(part, str) for node in nodes for part in node):
            if wrong := [number for number, node in enumerate(nodes) if len(node) != 2]:
                raise GenotypeError(f"{kind} cell: node {wrong[0]} has {len(nodes[wrong[0]])} genes; {_TWO}")
            nodes = [list(gene) for node in nodes for gene in node]
    except TypeError as error:
        raise GenotypeError(f"{kind} cell: genes are (operation, input) pairs: {error}") from error
    if triple := next((gene for gene in nodes if [type(part) for part in gene] == [str, int, int]), None):
        raise GenotypeError(f"{kind} cell: {tuple(triple)} is a triple with its node; {_TWO}")
    if any(len(gene) != 2 for gene in nodes):
        raise GenotypeError(f"{kind} cell: genes are (operation, input) pairs, got {nodes}")
    return tuple((op, state) for op, state in nodes)


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


_TWO = "cells with other numbers of inputs (FairDARTS, NASP) have no such form: give each node its two strongest"
_MOST_STATES = 1000
_NUMBER = re.compile(r"u?int\d*")
