"""Find architectures in pasted text, in the formats in which other codebases print, log and store them.

A line of a log, `DARTS_V2 = Genotype(...)`, `genotypes.Genotype(...)`, numpy's numbers, genes nested by node (pt.darts), a
dict (AutoDL-Projects), `Structure(4 nodes with |...|)`, JSON. It is parsed as data, never evaluated.
"""

import ast
import json
import re
from difflib import get_close_matches
from typing import Any

from fastdarts.spaces import Architecture
from fastdarts.spaces.candidates import of_genotypes
from fastdarts.spaces.genotype import FIELDS, Genotype, GenotypeError, read_architecture_json

WANTED = (
    "expected Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=[...], reduce_concat=range(2, 6)) "
    "or |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
)
_CALL = re.compile(r"\bGenotype\s*\(")
_NODE = r"\|(?:[^|+~\s]+~\d{1,3}\|)+"
_BENCHMARK = re.compile(rf"{_NODE}(?:\+{_NODE})*")


def read_pasted(text: str) -> Genotype | Architecture:
    """Return the only architecture in `text`, whose operations must all be known.

    Raises GenotypeError and ArchitectureError (both ValueError), also for several different ones.
    """
    found = {_read(part) for part in _parts(text)}
    if not found:
        raise GenotypeError(f"no genotype in {text.strip()[:80]!r}; {WANTED}")
    if len(found) > 1:
        raise GenotypeError(f"{len(found)} different genotypes: give only one")
    (cells,) = found
    check_operations(cells)
    return cells


def check_operations(cells: Genotype | Architecture) -> None:
    """Raise GenotypeError for an operation that is not registered, with the names of similar ones."""
    names, known = dict.fromkeys(op for kind in cells.wirings() for op in cells.operations(kind)), of_genotypes()
    unknown = [op for op in names if op not in known] if isinstance(cells, Genotype) else []
    if unknown:
        close = get_close_matches(unknown[0], known, n=2)
        meant = f", did you mean {' or '.join(close)}?" if close else ";"
        others = f" (and {', '.join(unknown[1:])})" if unknown[1:] else ""
        raise GenotypeError(
            f"unknown operation {unknown[0]!r}{others}{meant} known are {', '.join(known)}, and those registered by --modules"
        )


def _parts(text: str) -> list[str]:
    """Return the texts of all architectures, each from its first character to its last."""
    if text.lstrip().startswith(("{", "|")):
        return [text.strip()]
    calls = [_balanced(text[match.start() :]) for match in _CALL.finditer(text)]
    return calls or _BENCHMARK.findall(text)


def _balanced(text: str) -> str:
    """Return the text up to the parenthesis that closes the first one; all of it if none does."""
    depth = 0
    for match in re.finditer(r"'[^'\n]*'|\"[^\"\n]*\"|[()]", text):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if match[0] == ")" and not depth:
            return text[: match.end()]
    return text


def _read(part: str) -> Genotype | Architecture:
    if part.startswith("|"):
        return Architecture.from_text(part)
    if not part.startswith("{"):
        return Genotype.from_text(part)
    try:
        json.loads(part)
    except ValueError:
        return Genotype.from_fields(_dict(part))
    return read_architecture_json(part)


def _dict(text: str) -> dict[str, Any]:
    """Parse the fields of a dict in Python's text. Raises GenotypeError."""
    try:
        fields = ast.literal_eval(text)
        return {name: fields[name] for name in FIELDS}
    except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise GenotypeError(f"not a dict with the fields {', '.join(FIELDS)}: {text[:80]!r}; {WANTED}") from error
