"""S0, the space of DARTS (Liu et al., ICLR 2019): eight candidates on each of the 14 edges."""

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
