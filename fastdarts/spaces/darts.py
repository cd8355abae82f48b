"""S0, the space of DARTS (Liu et al., ICLR 2019): eight candidates on each of the 14 edges; S5, the seven besides none.

DARTS-PT, SDARTS and DrNAS search S5.
"""

from fastdarts.spaces.space import Space

# The order is part of every checkpoint of every DARTS codebase.
PRIMITIVES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)

S0 = Space.uniform("S0", PRIMITIVES)
S5 = Space.uniform("S5", PRIMITIVES[1:])
