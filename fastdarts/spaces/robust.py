"""S1 to S4, the reduced spaces of R-DARTS (Zela et al., ICLR 2020), in which plain DARTS collapses.

Cells and network are DARTS'. The order of an edge's candidates is R-DARTS', and part of its checkpoints.
"""

from fastdarts.spaces.space import Space

_MAX, _AVG, _SKIP = "max_pool_3x3", "avg_pool_3x3", "skip_connect"
_SEP3, _DIL3, _DIL5 = "sep_conv_3x3", "dil_conv_3x3", "dil_conv_5x5"

# The candidates of S0 left on each edge after dropping the least important ones step by step (the paper's section 3).
# A line is a node, a pair the candidates from one earlier state.
_NORMAL = (
    *((_SKIP, _DIL3), (_SKIP, _DIL5)),
    *((_SKIP, _DIL5), (_SKIP, _SEP3), (_SKIP, _DIL3)),
    *((_MAX, _SKIP), (_SKIP, _SEP3), (_SKIP, _SEP3), (_SKIP, _DIL3)),
    *((_SKIP, _SEP3), (_MAX, _SKIP), (_SKIP, _DIL3), (_DIL3, _DIL5), (_DIL3, _DIL5)),
)
_REDUCE = (
    *((_MAX, _AVG), (_MAX, _DIL3)),
    *((_MAX, _AVG), (_MAX, _AVG), (_SKIP, _DIL5)),
    *((_MAX, _AVG), (_MAX, _SEP3), (_SKIP, _DIL3), (_SKIP, _DIL5)),
    *((_MAX, _AVG), (_MAX, _AVG), (_SKIP, _DIL5), (_SKIP, _DIL5), (_SKIP, _DIL5)),
)

S1 = Space("S1", _NORMAL, _REDUCE)
S2 = Space.uniform("S2", (_SKIP, _SEP3))
S3 = Space.uniform("S3", ("none", _SKIP, _SEP3))
S4 = Space.uniform("S4", ("noise", _SEP3))  # noise: fresh draws from N(0, 1), independent of the input
