"""Model of glibc's heap under torch's CPU tensors: its growth, fragmentation included.

torch requests blocks aligned to 64 bytes (posix_memalign). glibc takes the smallest hole with PADDING bytes more than the
block, carves an aligned block out of it and frees the remainder. So the hole left by a tensor is too small for the next
tensor of the same size, unless it merges with an adjacent hole. Small blocks (autograd nodes, Python objects) prevent many
merges, since one fits exactly into the remainder behind a tensor. Such a block is called a wall here.
"""

from bisect import bisect_left, insort
from typing import NamedTuple

HEADER, GRAIN = 8, 16  # bytes of glibc's block header; blocks are multiples of GRAIN
PADDING = 96  # 64 for alignment, 32 for the smallest block that can be freed
MAPPED = 32 << 20  # mmap threshold: blocks of at least this size are mapped outside the heap
# Tensors per wall. Measured in a step of the definition on ImageNet's stem, k = 4: 28 % of the bytes freed by tensors were
# followed by a small block.
WALLED = 3


class Block(NamedTuple):
    """Position of a block in the heap; start -1: mapped separately."""

    start: int
    size: int


class Heap:
    """Heap of allocated and freed blocks; `taken` counts the heap with its holes, and separately mapped blocks."""

    def __init__(self) -> None:
        self._holes: list[tuple[int, int]] = []  # (size, start), sorted by size
        self._by_start: dict[int, int] = {}  # size by start
        self._by_end: dict[int, int] = {}
        self._top = self._mapped = self._count = 0
        self._walls: list[Block] = []

    @property
    def taken(self) -> int:
        """Return the bytes taken."""
        return self._top + self._mapped

    def take(self, size: int, walled: bool = False) -> Block:
        """Allocate a block for a tensor of `size` bytes; with `walled` every WALLED-th call adds a wall behind it."""
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
            length, start = self._holes[at]
            self._remove(at)
            if length > size + wall:
                self._add(start + size + wall, length - size - wall)
        if wall:
            self._walls.append(Block(start + size, wall))
        return Block(start, size)

    def give(self, block: Block) -> None:
        """Free a block and merge it with adjacent holes."""
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
        """Return the walls added since the last call; the caller frees them."""
        walls, self._walls = self._walls, []
        return walls

    def _add(self, start: int, size: int) -> None:
        insort(self._holes, (size, start))
        self._by_start[start] = self._by_end[start + size] = size

    def _remove(self, at: int) -> None:
        size, start = self._holes.pop(at)
        del self._by_start[start], self._by_end[start + size]
