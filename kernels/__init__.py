"""Triton kernels, one file an op, with the op's basename; imported as `fastdarts.kernels` (never as `kernels`)."""
