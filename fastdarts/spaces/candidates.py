"""The candidate operations, as names and facts; what they compute is in supernet/candidates.py."""

from dataclasses import dataclass
from typing import Literal

Family = Literal["none", "pool", "skip", "conv"]


@dataclass(frozen=True)
class Candidate:
    """One operation that an edge may choose."""

    name: str  # the name that genotypes of every DARTS codebase use
    family: Family  # what the collapse figures and the drawings distinguish


CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        Candidate("none", "none"),
        Candidate("max_pool_3x3", "pool"),
        Candidate("avg_pool_3x3", "pool"),
        Candidate("skip_connect", "skip"),
        Candidate("sep_conv_3x3", "conv"),
        Candidate("sep_conv_5x5", "conv"),
        Candidate("dil_conv_3x3", "conv"),
        Candidate("dil_conv_5x5", "conv"),
    )
}
