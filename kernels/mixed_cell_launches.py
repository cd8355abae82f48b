"""Parts of a plan of mixed_cell's launches: the call, a launch, a split of the pixels, memory. Needs no Triton.

Notation: N images, C channels of a state, m pixels of a node. The rows of the table are in rows.py.
"""

from dataclasses import dataclass, field

from fastdarts.kernels.graph import Graph
from fastdarts.kernels.rows import ALIGN

MOST_INPUTS = 4  # number of the kernels' input pointers
WIDEST = 128  # channels of a candidate: a matrix of twice the width needs more shared memory than a block has
TAPS = 5  # rows of the largest depthwise kernel of a search


def beyond(inputs: int, width: int) -> str | None:
    """Return why the Triton kernels cannot compute a cell of so many inputs and channels per candidate, or None."""
    if inputs > MOST_INPUTS:
        return f"its kernels support cells of at most {MOST_INPUTS} inputs, got {inputs}"
    return f"its kernels support at most {WIDEST} channels per candidate, got {width}" if width > WIDEST else None


@dataclass(frozen=True)
class Needs:
    """The gradients that a backward computes."""

    inputs: bool = True
    ops: bool = True
    weights: bool = True


@dataclass(frozen=True)
class Call:
    """Everything that the launches of a call depend on.

    shape     of an input: N, C, H, W
    chosen    random channels
    batch     batch statistics
    weighted  dimensions of the edges' weights: 1, or 2 with a weight for each image; 0: none
    shared    batch statistics are those of all ranks
    affine    BNs have scale and shift
    """

    graph: Graph
    shape: tuple[int, int, int, int]
    partial_channels: int = 1
    chosen: bool = False
    batch: bool = True
    weighted: int = 1
    shared: bool = False
    affine: bool = False


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    kernel      its name
    programs    the size of the grid; -1: one for each tile of `numbers` weights
    values      its arguments other than tensors and sizes of the cell
    numbers     of the op's dtype that it reads and writes, each counted once
    operations  floating-point ones
    exchanged   range in the table of the BNs (of the middle ones backward: the slots) whose sums ranks then exchange, if any
    """

    kernel: str
    programs: int
    values: dict[str, int | bool] = field(default_factory=dict)
    numbers: int = 0
    operations: int = 0
    exchanged: range = range(0)

    def bytes(self, itemsize: int) -> int:
        """Return a lower bound of the bytes transferred, for numbers of this size."""
        return self.numbers * itemsize


@dataclass(frozen=True)
class Split:
    """A split of pixels into parts of `per`."""

    per: int
    parts: int

    @staticmethod
    def of(pixels: int, most: int, least: int) -> "Split":
        """Split into at most `most` parts, each of a multiple of `least` pixels; the last may be smaller."""
        per = -(-pixels // (most * least)) * least
        return Split(per, -(-pixels // per))

    def values(self) -> dict[str, int | bool]:
        return {"per": self.per, "parts": self.parts}


# maximum number of parts, and the divisor of their sizes, in pixels
SUMMED = 256, 64  # for parts that store sums
FREE = 1 << 20, 128  # for parts that store none
LEARNT = 32, 64  # for parts that store the gradients of all weights


class Memory:
    """Allocates from a flat tensor; offsets count blocks of ALIGN numbers."""

    def __init__(self) -> None:
        self.blocks = 0

    def take(self, numbers: int) -> int:
        begin = self.blocks
        self.blocks += -(-numbers // ALIGN)
        return begin


def padded(channels: int) -> int:
    """Return the width of a tile of channels: a power of two, at least the tensor cores' 16."""
    return max(16, 1 << (channels - 1).bit_length())
