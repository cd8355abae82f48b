"""Candidate lists as a YAML or JSON file, and as the plain record that a run keeps.

name: mine                             # default: the file's name
skeleton: darts                        # or nasbench201; default: darts
nodes: 4                               # intermediate nodes of a cell; default: 4, for nasbench201 3
normal: [skip_connect, sep_conv_3x3]   # one list for all edges, or a list of a list for each edge, node by node
reduce: [skip_connect, sep_conv_3x3]   # nasbench201 has none
candidates: [...]                      # instead of normal and reduce, for both
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdarts import textfile
from fastdarts.spaces.candidates import SKELETONS, Skeleton
from fastdarts.spaces.space import INPUTS, KINDS, Space, count_edges

_KEYS = ("name", "skeleton", "nodes", "normal", "reduce", "candidates")
_NODES: dict[Skeleton, int] = {"darts": 4, "nasbench201": 3}


class SpaceError(ValueError):
    """Not a space, or a file or a record that describes none; the message says where and why."""


def read(path: str | Path) -> Space:
    """Read the space of a file. Raises SpaceError, which names the file, and the kind of cell and the edge at fault."""
    path = Path(path)
    try:
        record = textfile.read(path)
    except textfile.TextFileError as error:
        raise SpaceError(str(error)) from error
    if isinstance(record, dict):
        record = {"name": path.stem} | record
    return from_dict(record, str(path))


def to_dict(space: Space) -> dict[str, Any]:
    """Return the space as text, numbers and lists: equal records are equal spaces, and from_dict is the inverse."""
    record: dict[str, Any] = {"name": space.name, "skeleton": space.skeleton, "nodes": space.nodes}
    for kind in space.kinds:
        lists = space.candidates(kind)
        record[kind] = list(lists[0]) if len(set(lists)) == 1 else [list(names) for names in lists]
    return record


def from_dict(record: Any, where: str) -> Space:
    """Build the space of a record of to_dict or of a file; `where` prefixes SpaceError's message."""
    if not isinstance(record, Mapping):
        raise SpaceError(f"{where}: expected {', '.join(_KEYS)}, got {type(record).__name__}")
    if unknown := [str(key) for key in record if key not in _KEYS]:
        raise SpaceError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(_KEYS)}")
    name, skeleton = record.get("name"), record.get("skeleton", "darts")
    if not isinstance(name, str) or not name.strip():
        raise SpaceError(f"{where}: name must be text, got {name!r}")
    if skeleton not in SKELETONS:
        raise SpaceError(f"{where}: skeleton must be {' or '.join(SKELETONS)}, got {skeleton!r}")
    nodes = record.get("nodes", _NODES[skeleton])
    if type(nodes) is not int or nodes < 1:
        raise SpaceError(f"{where}: nodes must be an integer above 0, got {nodes!r}")
    inputs = INPUTS[skeleton]
    edges = count_edges(inputs, nodes)
    lists = {kind: _lists(where, kind, entry, edges) for kind, entry in _cells(where, record, skeleton).items()}
    try:
        return Space(name.strip(), lists["normal"], lists.get("reduce", ()), nodes, inputs, skeleton)
    except ValueError as error:
        raise SpaceError(f"{where}: {error}") from error


def _cells(where: str, record: Mapping[str, Any], skeleton: Skeleton) -> dict[str, Any]:
    """Return the entry of each kind of cell."""
    wanted = KINDS if skeleton == "darts" else KINDS[:1]
    present = [kind for kind in KINDS if kind in record]
    if "candidates" in record:
        if present:
            raise SpaceError(f"{where}: candidates replaces normal and reduce, remove {' and '.join(present)}")
        return dict.fromkeys(wanted, record["candidates"])
    if missing := [kind for kind in wanted if kind not in present]:
        raise SpaceError(f"{where}: {' and '.join(missing)} missing, or candidates for all cells")
    if len(present) > len(wanted):
        raise SpaceError(f"{where}: {skeleton} has no reduce cell")
    return {kind: record[kind] for kind in wanted}


def _lists(where: str, kind: str, entry: Any, edges: int) -> tuple[tuple[str, ...], ...]:
    """Return the names of each edge, from one list for all of them or a list for each."""
    if not isinstance(entry, list) or not entry:
        raise SpaceError(f"{where}: {kind} must be a list of names or {edges} lists of names, got {entry!r}")
    if all(isinstance(name, str) for name in entry):
        return (tuple(entry),) * edges
    for edge, names in enumerate(entry):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SpaceError(f"{where}: {kind} edge {edge}: expected a list of names, got {names!r}")
    return tuple(tuple(names) for names in entry)
