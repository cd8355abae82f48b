"""Rows of the table that the Triton kernels of mixed_cell read, and what a plan of launches is made of. Needs no Triton.

Letters: N images, C channels of a state, Cq of them that pass through an edge's candidates, m pixels of a node. Offsets into
the tensors of a call count blocks of ALIGN numbers, so that the kernels' compiler sees that addresses are aligned.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from fastdarts.ops.graph import Graph

ALIGN = 16  # numbers: what an offset counts in
MOST_INPUTS = 4  # the kernels' pointers
WIDEST = 128  # channels of a candidate: a matrix of twice as many on a side needs more shared memory than a block has
TAPS = 5  # rows of the largest depthwise kernel


class Kind(IntEnum):
    """What `sums` multiplies a gradient with."""

    Y = 0  # xhat of a convolution
    MAX = 1  # xhat of the 3x3 maximum
    AVG = 2  # xhat of the 3x3 mean, or, without a BN, the mean
    SKIP = 3  # the state
    BYPASS = 4  # what passes by


class Unit(NamedTuple):
    """A convolution that ends in a BN. Of those that a unit does not have, a number is 0 or -1."""

    source: int  # the input that it reads; -1: `state`, in `saved`
    state: int
    edge: int
    stride: int
    kernel: int  # of the depthwise convolution before a 1x1 one; 0: dense
    dilation: int
    taps: int  # of a dense one
    halves: int  # FactorizedReduce: each tap makes half of the outputs
    depthwise: int  # in `weights`
    pointwise: int
    y: int  # in `saved`
    norm: int
    before_y: int  # of the first half before a second one
    before_norm: int
    before_grad: int
    grad: int  # in the workspace: what reaches the BN
    middle: int  # 1 for a first half: `grad` is its own, not the node's
    slot: int  # of the sums between the halves
    dz: int  # in the workspace: gradient of the depthwise convolution's output; -1: nobody wants it


class Edge(NamedTuple):
    source: int
    state: int
    stride: int
    terms: int  # which rows of Term
    terms_end: int
    max: int  # columns of ops, and BNs
    max_norm: int
    avg: int
    avg_norm: int
    plain: int
    skip: int  # -1 under stride 2: there it is a unit
    units: int  # which units read the state
    units_end: int
    grad: int  # in the workspace: the node's gradient
    pool: int  # whose gradient this edge hands to its state (one edge of each pool)
    sums: int  # which rows of Sum
    sums_end: int


class Term(NamedTuple):
    """A convolution's output, as the node adds it up."""

    y: int
    norm: int
    column: int


class Node(NamedTuple):
    node: int
    state: int  # in `saved`; -1: no edge reads it
    edges: int
    edges_end: int


class State(NamedTuple):
    source: int
    state: int
    node: int  # -1: an input
    grad: int  # in the workspace
    leaving: int  # where in the table its edges' numbers are
    leaving_end: int


class Pool(NamedTuple):
    """The 3x3 maximum and mean of a state, for all edges that read the same channels of it."""

    source: int
    state: int
    edge: int  # whose channels
    stride: int
    max_slot: int  # of the sums of its BNs
    avg_slot: int
    leaving: int
    leaving_end: int
    dmax: int  # in the workspace
    place: int
    davg: int


class Norm(NamedTuple):
    norm: int
    slot: int


class Sum(NamedTuple):
    edge: int
    kind: int
    column: int  # -1: its weight is 1
    y: int
    norm: int  # -1: none


@dataclass(frozen=True)
class Needs:
    """Which gradients a backward is asked for."""

    inputs: bool = True
    ops: bool = True
    weights: bool = True


@dataclass(frozen=True)
class Call:
    """What the launches of a call depend on.

    shape     of an input: N, C, H, W
    chosen    random channels
    batch     batch statistics
    weighted  edges have weights
    shared    batch statistics are those of all ranks
    """

    graph: Graph
    shape: tuple[int, int, int, int]
    partial_channels: int = 1
    chosen: bool = False
    batch: bool = True
    weighted: bool = True
    shared: bool = False


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    kernel      its name
    programs    the size of the grid; -1: one for each tile of `numbers` weights
    values      its arguments beside tensors and sizes of the cell
    numbers     how many numbers of the op's dtype it reads and writes, each counted once
    operations  floating-point ones
    exchanged   where in the table the BNs (of `middle`: the slots) are whose sums are then exchanged between ranks, if any
    """

    kernel: str
    programs: int
    values: dict[str, int | bool] = field(default_factory=dict)
    numbers: int = 0
    operations: int = 0
    exchanged: range = range(0)

    def bytes(self, itemsize: int) -> int:
        """Moved at least, for numbers of this size."""
        return self.numbers * itemsize


@dataclass(frozen=True)
class Split:
    """Pixels cut into parts of `per`."""

    per: int
    parts: int

    @staticmethod
    def of(pixels: int, most: int, least: int) -> "Split":
        """At most `most` parts, each of a multiple of `least` pixels; the last may be smaller."""
        per = -(-pixels // (most * least)) * least
        return Split(per, -(-pixels // per))

    def values(self) -> dict[str, int | bool]:
        return {"per": self.per, "parts": self.parts}


SUMMED = 256, 64  # where each part leaves sums behind
FREE = 1 << 20, 128  # where it does not
LEARNT = 32, 64  # where it leaves the gradients of all weights behind


class Memory:
    """Deals out a flat tensor; offsets count blocks of ALIGN numbers."""

    def __init__(self) -> None:
        self.blocks = 0

    def take(self, numbers: int) -> int:
        begin = self.blocks
        self.blocks += -(-numbers // ALIGN)
        return begin


def padded(channels: int) -> int:
    """The width of a tile of channels: a power of two, at least what the tensor cores take."""
    return max(16, 1 << (channels - 1).bit_length())
