"""The C library's heap as torch's CPU tensors see it: how far it grows for the tensors in it, gaps included.

torch asks for blocks at multiples of 64 bytes (posix_memalign). glibc looks for the smallest hole with PADDING bytes more than
the block, cuts the block out at such a multiple and gives the rest back. So the hole that a tensor leaves is too small for the
next tensor of its size, unless it merges with a hole beside it. Small blocks (nodes of autograd's graph, Python's objects) keep
many from merging: one fits just into what was given back behind a tensor. Such a block is called a wall here.
"""

from bisect import bisect_left, insort
from typing import NamedTuple

HEADER, GRAIN = 8, 16  # bytes that the C library keeps with each block; blocks are multiples of GRAIN
PADDING = 96  # 64 for the place at a multiple of 64, 32 for the smallest block that can be given back
MAPPED = 32 << 20  # a block of so many bytes is no part of the heap: the C library maps it by itself
# Behind every so many tensors a wall is built. Counted in a step of the definition on ImageNet's stem, k = 4: of the bytes that
# tensors gave back, 28 % lay before a small block.
WALLED = 3


class Block(NamedTuple):
    """Where a block of the heap lies; start -1: mapped by itself."""

    start: int
    size: int


class Heap:
    """Blocks are taken and given back; `taken` is what the heap holds with its holes, and what is mapped besides."""

    def __init__(self) -> None:
        self._holes: list[tuple[int, int]] = []  # size and start of each, by size
        self._by_start: dict[int, int] = {}  # their sizes
        self._by_end: dict[int, int] = {}
        self._top = self._mapped = self._count = 0
        self._walls: list[Block] = []

    @property
    def taken(self) -> int:
        """Bytes."""
        return self._top + self._mapped

    def take(self, size: int, walled: bool = False) -> Block:
        """A block for a tensor of `size` bytes; with `walled` every WALLED-th call builds a wall behind it."""
        if size >= MAPPED:
            self._mapped += size
            return Block(-1, size)
        size = -(-(size + HEADER) // GRAIN) * GRAIN
        self._count += walled
        wall = PADDING if walled and self._count % WALLED == 0 else 0
        at = bisect_left(self._holes, (size + PADDING, 0))
        if at == len(self._holes):
            start = self._top
            self._top += size + wall
        else:
            room, start = self._holes[at]
            self._remove(at)
            if room > size + wall:
                self._add(start + size + wall, room - size - wall)
        if wall:
            self._walls.append(Block(start + size, wall))
        return Block(start, size)

    def give(self, block: Block) -> None:
        """Back; it merges with the holes beside it."""
        if block.start < 0:
            self._mapped -= block.size
            return
        start, end = block.start, block.start + block.size
        if start in self._by_end:
            size = self._by_end[start]
            start -= size
            self._remove(bisect_left(self._holes, (size, start)))
        if end in self._by_start:
            size = self._by_start[end]
            self._remove(bisect_left(self._holes, (size, end)))
            end += size
        if end == self._top:
            self._top = start
        else:
            self._add(start, end - start)

    def walls(self) -> list[Block]:
        """The walls built since the last call: whoever asks gives them back."""
        walls, self._walls = self._walls, []
        return walls

    def _add(self, start: int, size: int) -> None:
        insort(self._holes, (size, start))
        self._by_start[start] = self._by_end[start + size] = size

    def _remove(self, at: int) -> None:
        size, start = self._holes.pop(at)
        del self._by_start[start], self._by_end[start + size]
