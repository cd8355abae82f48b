"""Small search networks that each compute what one published codebase does, written from a description of it.

ZOO lists them; `bilevel_steps(entry.make(seed, dtype), entry, count, seed)` moves one and returns all that it moved.
"""

from tests.zoo import darts, deciding, frameworks, nasbench201, partial, pdarts, robust
from tests.zoo.driver import Entry, Event, bilevel_steps, default_dtype, furthest, images

__all__ = ["ZOO", "Entry", "Event", "bilevel_steps", "default_dtype", "furthest", "images"]

ZOO: list[Entry] = [
    entry for part in (darts, partial, pdarts, robust, deciding, nasbench201, frameworks) for entry in part.ENTRIES
]
