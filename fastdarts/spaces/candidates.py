"""The candidate operations: names and properties. supernet/candidates.py has their computation."""

from dataclasses import dataclass
from typing import Literal, get_args

Family = Literal["none", "pool", "skip", "conv", "noise"]
Skeleton = Literal["darts", "nasbench201"]  # the network around the cells
SKELETONS: tuple[Skeleton, ...] = get_args(Skeleton)


@dataclass(frozen=True)
class Candidate:
    """One operation that an edge may choose."""

    name: str  # the name that genotypes of every codebase use
    family: Family  # what the collapse figures and the drawings distinguish
    skeletons: tuple[Skeleton, ...] = ("darts",)  # the supernets that may have it


CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        Candidate("none", "none", SKELETONS),
        Candidate("max_pool_3x3", "pool"),
        Candidate("avg_pool_3x3", "pool", SKELETONS),  # with BN after it in DARTS, without in NAS-Bench-201
        Candidate("skip_connect", "skip", SKELETONS),
        Candidate("sep_conv_3x3", "conv"),
        Candidate("sep_conv_5x5", "conv"),
        Candidate("dil_conv_3x3", "conv"),
        Candidate("dil_conv_5x5", "conv"),
        Candidate("nor_conv_1x1", "conv", ("nasbench201",)),
        Candidate("nor_conv_3x3", "conv", ("nasbench201",)),
        Candidate("noise", "noise"),
        Candidate("sep_conv_7x7", "conv", ()),  # of NASNet's and AmoebaNet's cells; no search offers these two
        Candidate("conv_7x1_1x7", "conv", ()),
    )
}


def known(skeleton: Skeleton) -> list[str]:
    """Return the names of the candidates that the cells of a network may have."""
    return [name for name, candidate in CANDIDATES.items() if skeleton in candidate.skeletons]


def of_genotypes() -> list[str]:
    """Return the names of the operations that a genotype may have."""
    return [name for name, candidate in CANDIDATES.items() if candidate.skeletons != ("nasbench201",)]
