"""Numbers shared by Python, the Triton kernels and the C++ kernels: codes, rows of the plan's table, limits.

This file is their only source. `python -m fastdarts.kernels.rows` writes them to csrc/rows.h, which is checked in;
tests/kernels/test_rows.py fails when it is stale. Imports neither Triton nor torch.

Notation: C channels of a state, Cq of them that pass through an edge's candidates, m pixels of a node.
"""

from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

HEADER = Path(__file__).parent.parent / "csrc" / "rows.h"  # in a checkout

# -------------------------------------------------------------------------------------------------------------- limits

PURPOSE_MASK = 4  # ops.philox.Purpose.MASK: the kernels draw these words themselves
CROP_BITS = 14  # of a resizing weight: those of one output sum to 2**14
MOST_SIDE = 2**14  # pixels of a cached image's side and of the resized one's: the GPU kernel counts in 32 bits
ALIGN = 16  # numbers: offsets into a call's tensors count blocks of these, so that compilers see aligned addresses
CUDA_WIDEST = 64  # channels of the CUDA kernel `separable`, whose threads hold all outputs of a pixel in registers

# --------------------------------------------------------------------------------------------------------------- codes


class Candidate(IntEnum):
    """A candidate operation of an edge. No convolution has a bias."""

    NONE = 0  # zero
    SKIP = 1  # the state itself; under stride 2 FactorizedReduce (ReLU, two 1x1 convolutions, BN)
    MAX_POOL_3 = 2  # 3x3 maximum, BN
    AVG_POOL_3 = 3  # 3x3 mean that does not count padding, BN
    SEP_CONV_3 = 4  # twice: ReLU, depthwise convolution, 1x1 convolution, BN; only the first strides
    SEP_CONV_5 = 5
    DIL_CONV_3 = 6  # ReLU, depthwise convolution of dilation 2, 1x1 convolution, BN
    DIL_CONV_5 = 7
    CONV_1 = 8  # ReLU, convolution of all channels, BN
    CONV_3 = 9
    PLAIN_AVG_POOL_3 = 10  # AVG_POOL_3 without BN
    PLAIN_MAX_POOL_3 = 11  # MAX_POOL_3 without BN
    SEP_CONV_7 = 12  # as SEP_CONV_3


class Kind(IntEnum):
    """The term that `grad_sums` multiplies with a gradient."""

    Y = 0  # xhat of a convolution
    MAX = 1  # xhat of the 3x3 maximum, or, without a BN, the maximum
    AVG = 2  # xhat of the 3x3 mean, or, without a BN, the mean
    SKIP = 3  # the state
    BYPASS = 4  # the channels that bypass the candidates


# ---------------------------------------------------------------------------------- rows of the table, int64 a field


class UnitRow(NamedTuple):
    """A convolution that ends in a BN. Fields that do not apply are 0 or -1."""

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
    grad: int  # in the workspace: the gradient that reaches the BN
    middle: int  # 1 for a first half: `grad` is its own gradient, not the node's
    slot: int  # of the sums between the halves
    dz: int  # in the workspace: gradient of the depthwise convolution's output; -1: not needed


class EdgeRow(NamedTuple):
    """An edge: the terms of its node's sum, and of its state's gradient."""

    source: int
    state: int
    stride: int
    terms: int  # range of TermRows
    terms_end: int
    max: int  # columns of ops, and BNs
    max_norm: int
    avg: int
    avg_norm: int
    plain: int
    skip: int  # -1 under stride 2, where it is a unit
    units: int  # range of the UnitRows that read the state
    units_end: int
    grad: int  # in the workspace: the node's gradient
    pool: int  # whose gradient this edge hands to its state (one edge of each pool)
    sums: int  # range of SumRows
    sums_end: int


class TermRow(NamedTuple):
    """A convolution's output, as a term of the node's sum."""

    y: int
    norm: int
    column: int


class NodeRow(NamedTuple):
    """A node and the range of its edges."""

    node: int
    state: int  # in `saved`; -1: no edge reads it
    edges: int
    edges_end: int


class StateRow(NamedTuple):
    """A state whose gradient is pulled from the edges that leave it."""

    source: int
    state: int
    node: int  # -1: an input
    grad: int  # in the workspace
    leaving: int  # where in the table its edges' numbers are
    leaving_end: int


class PoolRow(NamedTuple):
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


class NormRow(NamedTuple):
    """A BN and the slot of its sums."""

    norm: int
    slot: int


class SumRow(NamedTuple):
    """A term of an edge whose product with the node's gradient is summed."""

    edge: int
    kind: int  # a Kind
    column: int  # -1: its weight is 1
    y: int
    norm: int  # -1: none


ROWS = (UnitRow, EdgeRow, TermRow, NodeRow, StateRow, PoolRow, NormRow, SumRow)


# ---------------------------------------------------------------------------------------------------------- the header


def _enum(head: str, names: list[str]) -> str:
    return "\n".join([f"{head} {{", *(f"  {name}," for name in names), "};"])


def _constant(kind: str, name: str) -> str:
    return f"constexpr {kind} {name} = {globals()[name]};"


def header() -> str:
    """Return the text of csrc/rows.h."""
    fields = []
    for row in ROWS:
        prefix = row.__name__.removesuffix("Row")
        names = [f"{prefix.upper()}_{field.upper()}" for field in row._fields]
        fields.append(_enum(f"enum {prefix}Field", [*names, prefix.upper()]))
    return "\n".join(
        [
            "// Written by `python -m fastdarts.kernels.rows`, which says what each number means. Do not edit.",
            "#pragma once",
            "",
            "#include <cstdint>",
            "",
            "namespace fastdarts {",
            "",
            *(_constant("int64_t", name) for name in ("PURPOSE_MASK", "MOST_SIDE")),
            _constant("int", "CROP_BITS"),
            "",
            _enum("enum Candidate : int64_t", [candidate.name for candidate in Candidate]),
            "",
            "namespace cuda {",
            "",
            *(_constant("int64_t", name) for name in ("ALIGN", "CUDA_WIDEST")),
            "",
            "// Fields of the table's rows; last the length of a row.",
            *fields,
            "",
            "}  // namespace cuda",
            "}  // namespace fastdarts",
            "",
        ]
    )


if __name__ == "__main__":
    HEADER.write_text(header(), encoding="utf-8")
