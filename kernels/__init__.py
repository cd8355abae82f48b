"""Triton kernels, one file per op, with the op's basename. Import as `fastdarts.kernels`, never as `kernels`."""
