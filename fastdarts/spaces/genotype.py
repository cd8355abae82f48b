"""A discrete cell pair, as text, as JSON, and checked.

The text is the customary `Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=...)` that
DARTS' descendants print and read; it is parsed as data, never evaluated.
"""

import ast
import json
import math
from dataclasses import dataclass
from typing import Any

from fastdarts.spaces import Architecture, Kind, Wiring

Gene = tuple[str, int]  # (operation, number of the input state)
COLLAPSE_SKIPS, COLLAPSE_OF = 5, 8  # skips among a cell's operations: from here on a search is called collapsed


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
        """Machine-readable: the four fields, `text` as DARTS prints it, and whatever else the caller adds."""
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
        """The inverse of to_json; unknown keys are left alone. Raises GenotypeError."""
        try:
            record = json.loads(text)
            return Genotype.from_fields({name: record[name] for name in _FIELDS})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise GenotypeError(f"not the JSON of a genotype: {error}") from error

    @staticmethod
    def from_text(text: str) -> "Genotype":
        """Parse the `Genotype(...)` text of any DARTS codebase: genes as lists or tuples, concat as a range or a list.

        Raises GenotypeError.
        """
        try:
            call = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            raise GenotypeError(f"not a genotype: {text[:80]!r}") from error
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Genotype"):
            raise GenotypeError(f"expected Genotype(...), got {text[:80]!r}")
        given = dict(zip(_FIELDS, call.args, strict=False)) | {k.arg: k.value for k in call.keywords}
        if set(given) != set(_FIELDS) or len(call.args) + len(call.keywords) != len(_FIELDS):
            raise GenotypeError(f"a genotype has the fields {', '.join(_FIELDS)}; got {', '.join(map(str, given))}")
        return Genotype.from_fields({name: _literal(node) for name, node in given.items()})

    @staticmethod
    def from_fields(fields: dict[str, Any]) -> "Genotype":
        """Build and check a genotype from plain lists. Raises GenotypeError."""
        try:
            cells = {kind: tuple((op, state) for op, state in fields[kind]) for kind in ("normal", "reduce")}
            concat = {name: tuple(fields[name]) for name in ("normal_concat", "reduce_concat")}
        except (TypeError, ValueError) as error:
            raise GenotypeError(f"genes are (operation, input) pairs: {error}") from error
        genes = [gene for cell in cells.values() for gene in cell]
        if not all(type(op) is str and type(state) is int for op, state in genes):
            raise GenotypeError(f"genes are (name, whole number) pairs, got {genes}")
        if not all(type(i) is int for numbers in concat.values() for i in numbers):
            raise GenotypeError(f"concatenated states are whole numbers, got {concat}")
        genotype = Genotype(**cells, **concat)
        genotype.check()
        return genotype

    def check(self) -> None:
        """Raise GenotypeError unless both cells are well formed: two inputs a node, each from an earlier state."""
        for kind in ("normal", "reduce"):
            genes, concat = getattr(self, kind), getattr(self, f"{kind}_concat")
            if not genes or len(genes) % 2:
                raise GenotypeError(f"{kind} cell: two genes a node are needed, got {len(genes)} genes")
            for number, (op, state) in enumerate(genes):
                if not 0 <= state < 2 + number // 2:
                    raise GenotypeError(f"{kind} cell: gene {number} ({op!r}) reads state {state}, which is not before it")
            states = 2 + len(genes) // 2
            if not concat or any(not 0 <= i < states for i in concat):
                raise GenotypeError(f"{kind} cell: concatenates {list(concat)}, but its states are 0..{states - 1}")

    def operations(self, kind: str) -> list[str]:
        """The operations of the `normal` or `reduce` cell, in the genes' order."""
        return [op for op, _ in getattr(self, kind)]

    def wirings(self) -> dict[Kind, Wiring]:
        """How its cells are connected."""
        inputs = ("c_{k-2}", "c_{k-1}")
        return {
            kind: Wiring(inputs, tuple((op, state, gene // 2) for gene, (op, state) in enumerate(getattr(self, kind))), concat)
            for kind, concat in (("normal", self.normal_concat), ("reduce", self.reduce_concat))
        }


def read_architecture(text: str) -> Genotype | Architecture:
    """A discrete architecture from its text: `Genotype(...)`, or NAS-Bench-201's `|op~0|+...`.

    Raises GenotypeError, ArchitectureError (both ValueError).
    """
    return Architecture.from_text(text) if text.lstrip().startswith("|") else Genotype.from_text(text)


def read_architecture_json(text: str) -> Genotype | Architecture:
    """The inverse of to_json of either. Raises GenotypeError, ArchitectureError (both ValueError)."""
    return Architecture.from_json(text) if '"ops":' in text else Genotype.from_json(text)


def collapse_line(operations: int) -> int:
    """The number of skips among a cell's `operations` that counts as a collapse: COLLAPSE_SKIPS of 8, in proportion."""
    return math.ceil(operations * COLLAPSE_SKIPS / COLLAPSE_OF)


_FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")


def _concat_text(concat: tuple[int, ...]) -> str:
    span = range(concat[0], concat[-1] + 1)
    return f"range({span.start}, {span.stop})" if tuple(span) == concat else str(list(concat))


def _literal(node: ast.expr) -> Any:
    """A literal, or range(a, b) of literals."""
    is_range = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range" and not node.keywords
    try:
        return list(range(*map(ast.literal_eval, node.args))) if is_range else ast.literal_eval(node)
    except (TypeError, ValueError) as error:
        raise GenotypeError(f"neither a literal nor a range of numbers: {ast.unparse(node)}") from error
