"""The spaces by name, and a space from a name or a file."""

import os
from pathlib import Path

from fastdarts.registry import SPACES
from fastdarts.spaces import file
from fastdarts.spaces.darts import S0, S5
from fastdarts.spaces.nasbench201 import NASBENCH201
from fastdarts.spaces.robust import S1, S2, S3, S4
from fastdarts.spaces.space import Space
from fastdarts.textfile import SUFFIXES

SPACES |= {space.name.lower(): space for space in (S0, S1, S2, S3, S4, S5, NASBENCH201)}


def named(text: str) -> Space:
    """Return the space of a name, in any case, or of a file of candidate lists, which ends in .yaml, .yml or .json.

    Raises SpaceError for neither, for a missing or wrong file, and for a file that gives another space a name of SPACES.
    """
    name = text.strip().lower()
    if name in SPACES:
        return SPACES[name]
    path = Path(os.path.expanduser(text))
    if path.suffix.lower() not in SUFFIXES:
        suffixes = ", ".join(SUFFIXES)
        raise file.SpaceError(f"no space {text!r}: give {', '.join(SPACES)}, or a file of candidate lists ({suffixes})")
    space = file.read(path)
    if SPACES.get(space.name.lower(), space) != space:
        raise file.SpaceError(f"{path}: the name {space.name} is taken by another space, choose a unique one")
    return space
