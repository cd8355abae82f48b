"""Find the lines of a kernel's source that belong to a statement."""

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Region(NamedTuple):
    """Lines of a statement: its body and its `else`."""

    body: range
    other: range


@cache
def regions(path: Path) -> dict[int, Region]:
    """Return the lines of each `if` and `for` of a file by the line it begins in."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else ():
        if isinstance(node, ast.If | ast.For):
            found[node.lineno] = Region(_lines(node.body), _lines(node.orelse))
    return found


def _lines(body: list[ast.stmt]) -> range:
    return range(body[0].lineno, (body[-1].end_lineno or 0) + 1) if body else range(0)


@cache
def first_lines(path: Path) -> dict[int, int]:
    """Return the first line of each simple statement of several lines, by its lines: compilers name any of them for a call."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else ():
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr | ast.Return):
            found |= dict.fromkeys(range(node.lineno + 1, (node.end_lineno or 0) + 1), node.lineno)
    return found
