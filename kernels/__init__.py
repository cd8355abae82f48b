"""Triton kernels, one file per op, with the op's basename; imported as `fastdarts.kernels` (never as `kernels`)."""
