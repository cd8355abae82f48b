"""Compute how often a program executes each block of its machine code, from the counts of its source.

A branch comes from an `if` or a `for` of the source, whose counts (programs.Passes) give its probability; then the executions
of all blocks follow from one another: a linear system. So unrolled, hoisted and predicated code counts as it is.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.sass.machine_code import Instruction
from bench.sass.programs import Chain, Passes
from bench.sass.source import first_lines, regions
from fastdarts.kernels import launch

KERNELS = Path(launch.__file__).parent
PURE = 0.9  # share of a side's instructions from the body of an `if`, at which that decides


class Block(NamedTuple):
    """Instructions that run together, and the blocks that follow: after a branch its target first. The last one is the end."""

    instructions: tuple[Instruction, ...]
    follow: tuple[int, ...]


class Flow:
    """Blocks of a kernel and its branches.

    folder       of the source files that chains name: a cached kernel may have been compiled in another checkout
    unexplained  lines of the loops that ran once because no loop of the source explains them
    """

    def __init__(self, instructions: Sequence[Instruction], folder: Path = KERNELS) -> None:
        self.folder = folder
        self.blocks = _blocks([replace(one, chain=self._begun(one.chain)) for one in instructions])
        self.unexplained: set[Chain] = set()
        self._chains = [[one.chain for one in block.instructions] for block in self.blocks]
        self._reach = [self._reachable(i) for i in range(len(self.blocks))]
        self._before = [[j for j, block in enumerate(self.blocks) if i in block.follow] for i in range(len(self.blocks))]

    def _begun(self, chain: Chain) -> Chain:
        """Return a chain with the first lines of its statements."""
        return tuple((file, first_lines(self.folder / file).get(line, line)) for file, line in chain)

    def executions(self, passes: Passes) -> list[float]:
        """Return how often a warp of a program with these counts executes each block."""
        size = len(self.blocks)
        matrix, entry = np.eye(size), np.zeros(size)
        entry[0] = 1.0
        for i, block in enumerate(self.blocks):
            if len(block.follow) == 1:
                matrix[block.follow[0], i] -= 1.0
            elif len(block.follow) == 2:
                taken = self._taken(i, passes)
                matrix[block.follow[0], i] -= taken
                matrix[block.follow[1], i] -= 1.0 - taken
        found = [max(float(x), 0.0) for x in np.linalg.solve(matrix, entry)]
        self.unexplained |= {chain for i, chain in self._exits if found[i] > 1e-6 and _matching(passes.loops, chain) is None}
        return found

    @cached_property
    def _exits(self) -> list[tuple[int, Chain]]:
        """Return the blocks whose branch leaves a loop, and its lines."""
        found = []
        for i, block in enumerate(self.blocks):
            inside = [j in self.innermost[i] for j in block.follow]
            if len(inside) == 2 and inside[0] != inside[1]:
                found.append((i, block.instructions[-1].chain))
        return found

    @cached_property
    def loops(self) -> list[frozenset[int]]:
        """Return the blocks of each loop, by its backward branch."""
        found: dict[int, set[int]] = {}
        for i, block in enumerate(self.blocks):
            for head in block.follow:
                if head <= i:
                    inside = {j for j in range(head, len(self.blocks)) if i == j or (j <= i and i in self._reach[j])}
                    found.setdefault(head, set()).update(inside)
        return [frozenset(inside) for inside in found.values()]

    @cached_property
    def innermost(self) -> list[frozenset[int]]:
        """Return the innermost loop of each block; empty outside of loops."""
        around = ([loop for loop in self.loops if i in loop] for i in range(len(self.blocks)))
        return [min(loops, key=len) if loops else frozenset() for loops in around]

    def _reachable(self, start: int) -> frozenset[int]:
        """Return the blocks that can follow without a backward branch, itself included."""
        found, waiting = {start}, [start]
        while waiting:
            i = waiting.pop()
            for j in self.blocks[i].follow:
                if j > i and j not in found:
                    found.add(j)
                    waiting.append(j)
        return frozenset(found)

    def _taken(self, i: int, passes: Passes) -> float:
        """Return the probability that block i's branch is taken."""
        taken, other = self.blocks[i].follow
        loop = self.innermost[i]
        if loop and (taken in loop) != (other in loop):
            leaves = 1.0 / self._iterations(i, passes)
            return leaves if other in loop else 1.0 - leaves
        key, side, share = self._decides(i, passes)
        if key is None:
            for number, reached in enumerate(self._sides(i)):
                around = [c for j, c in self._exits if j in reached and self.innermost[j] <= reached]
                guarded = [counts for chain in around if (counts := _matching(passes.loops, chain))]
                if guarded:  # the loop's guard, under another line
                    share = max(full / entries for entries, full, _ in guarded)
                    return share if number == 0 else 1.0 - share
            sizes = [sum(len(self._chains[j]) for j in reached) for reached in self._sides(i)]
            return float(taken < len(self.blocks) - 1 and sizes[0] <= sizes[1])
        before = self._before[i]
        if len(before) == 1 and len(self.blocks[before[0]].follow) == 2 and before[0] < i:
            above, _, _ = self._decides(before[0], passes)
            if above is not None and above != key and not self._within(above, key):  # of a switch: the cases left
                reached = self._taken(before[0], passes)
                reached = reached if self.blocks[before[0]].follow[0] == i else 1.0 - reached
                share = min(1.0, share / reached) if reached else 0.0
        return share if side == 0 else 1.0 - share

    def _iterations(self, i: int, passes: Passes) -> float:
        """Return how often the loop that block i's branch leaves runs once it is entered; 1 for one that is not understood.

        Of several loops from one of the source, those with more loads run several iterations at once, and before the others.
        """
        chain, loop = self.blocks[i].instructions[-1].chain, self.innermost[i]
        _, full, iterations = _matching(passes.loops, chain) or (0.0, 1.0, 1.0)
        if not full:
            return 1.0
        alike = {self.innermost[j] for j, other in self._exits if other == chain}
        size = {one: max(1, sum(x.kind.startswith("LDG") for j in one for x in self.blocks[j].instructions)) for one in alike}
        unrolled = {one: max(1, round(size[one] / min(size.values()))) for one in alike}
        before = min((times for times in unrolled.values() if times > unrolled[loop]), default=None)
        left = iterations / full if before is None else iterations / full % before
        return max(left // unrolled[loop], 1.0)

    def _decides(self, i: int, passes: Passes) -> tuple[Chain | None, int, float]:
        """Return the `if` or `for` that block i's branch comes from, which side is its body (0 or 1), and its share.

        The branch's line says so. But of a chain of `if`s that exclude one another, compilers make branches in any order.
        """
        chain, sides = self.blocks[i].instructions[-1].chain, self._sides(i)
        counts = _matching(passes.branches, chain) or _matching(passes.loops, chain)
        if counts is None:
            return None, 0, 0.0
        bodies = [sum(self._within(chain, one) > 0 for j in side for one in self._chains[j]) for side in sides]
        scores = [self._purity(chain, side) for side in sides]
        body = int(bodies[1] > bodies[0]) if chain in passes.branches else int(scores[1] > scores[0])
        decided = self.blocks[self.blocks[i].follow[body]]  # or there another branch decides
        if chain in passes.branches and len(decided.follow) == 2 and _siblings(decided.instructions[-1].chain, chain):
            others = [key for key in self._beside(chain, passes) if not self._within(key, chain)]
            pure = [key for key in others if self._purity(key, sides[1 - body]) >= PURE]
            if not pure and not any(self._within(chain, one) for j in sides[1 - body] for one in self._chains[j]):
                # merged with like code elsewhere, under its lines
                pure = [key for key in others if not any(self._within(key, one) > 0 for each in self._chains for one in each)]
            if pure:
                true = sum(passes.branches.get(key, (0.0, 0.0))[1] for key in pure)
                return pure[0], 1 - body, min(1.0, true / counts[0])
        share = counts[1] / counts[0]  # of evaluations: true ones, or those with an iteration
        return (chain, body, share) if bodies[0] != bodies[1] or scores[0] != scores[1] else (None, 0, 0.0)

    def _beside(self, chain: Chain, passes: Passes) -> list[Chain]:
        """Return the other `if`s of a call, with those of an `else` that were never evaluated."""
        file, line = chain[-1]
        known = regions(self.folder / file)
        inside = [(*chain[:-1], (file, other)) for other in known if line in known and other in known[line].other]
        return [key for key in dict.fromkeys([*passes.branches, *inside]) if key != chain and _siblings(key, chain)]

    def _purity(self, key: Chain, side: frozenset[int]) -> float:
        """Return the share of a side's instructions that come from a statement's body, less those from its `else`."""
        chains = [chain for j in side for chain in self._chains[j]]
        return sum(self._within(key, chain) for chain in chains) / len(chains) if chains else 0.0

    def _sides(self, i: int) -> list[frozenset[int]]:
        """Return the blocks that only the target of block i's branch leads to, and those that only the other way does."""
        one, other = (self._reach[j] for j in self.blocks[i].follow)
        return [one - other, other - one]

    def _within(self, key: Chain, chain: Chain) -> int:
        """Return 1 for a line in the body of a statement, -1 in its `else`, 0 elsewhere."""
        file, line = key[-1]
        region, depth = regions(self.folder / file).get(line), len(key) - 1
        if region is None or len(chain) <= depth or chain[depth][0] != file or not _alike(chain[:depth], key[:depth]):
            return 0
        return (chain[depth][1] in region.body) - (chain[depth][1] in region.other)


def _alike(one: Chain, other: Chain) -> bool:
    """Return whether two chains are the same; line 0 stands for any."""
    return len(one) == len(other) and all(
        a[0] == b[0] and (a[1] == b[1] or 0 in (a[1], b[1])) for a, b in zip(one, other, strict=True)
    )


def _siblings(one: Chain, other: Chain) -> bool:
    """Return whether two lines are of the same call."""
    return one[:-1] == other[:-1] and one[-1][0] == other[-1][0]


def _matching(counts: Mapping[Chain, tuple[float, ...]], chain: Chain) -> tuple[float, ...] | None:
    """Return the counts of a chain; where it has lines merged, the sum of all that it can be."""
    if chain in counts:
        return counts[chain]
    found = [values for key, values in counts.items() if any(line == 0 for _, line in chain) and _alike(key, chain)]
    return tuple(map(sum, zip(*found, strict=True))) if found else None


def _blocks(instructions: Sequence[Instruction]) -> list[Block]:
    begins = {0}
    for i, one in enumerate(instructions):
        if one.label:
            begins.add(i)
        if one.target or one.opcode.startswith(("EXIT", "RET")):
            begins.add(i + 1)
    starts = sorted(begin for begin in begins if begin < len(instructions))
    at = {instructions[start].label: i for i, start in enumerate(starts)}
    found = []
    for i, (start, end) in enumerate(zip(starts, [*starts[1:], len(instructions)], strict=True)):
        last = instructions[end - 1]
        after = (i + 1,) if i + 1 < len(starts) else ()
        leaves = last.opcode.startswith(("EXIT", "RET"))
        if last.target and at[last.target] == i and not last.predicated:
            follow = ()  # the padding after the end
        elif last.target or leaves:
            follow = (at[last.target] if last.target else len(starts), *(after if last.predicated else ()))
        else:
            follow = after
        found.append(Block(tuple(instructions[start:end]), follow))
    return [*found, Block((), ())]


def by_kind(block: Block) -> Counter[str]:
    """Return the number of instructions of each class."""
    return Counter(one.kind for one in block.instructions)
