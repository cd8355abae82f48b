"""Arguments and results of the registered ops. Python reads them by name, C++ takes them in this order.

fastdarts/ops/schema.py builds the ops' schemas from these classes and passes their objects to fake and GPU kernels. Kernels
require these layouts: images channels_last-contiguous, everything else contiguous. `sync` is a handle of
fastdarts/ops/sync.py. Needs no Triton.
"""

from typing import NamedTuple

from torch import Tensor


class MixedCell(NamedTuple):
    """Arguments of fastdarts::mixed_cell. Without running statistics, those of the batch normalise."""

    inputs: list[Tensor]
    ops: Tensor
    edges: Tensor | None
    weights: Tensor
    affine: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    channels: Tensor | None
    graph: list[int]  # Graph.encode()
    partial_channels: int
    eps: float
    sync: int


class MixedCellResults(NamedTuple):
    """Results of fastdarts::mixed_cell."""

    out: Tensor
    statistics: Tensor  # float64 (2, B * Cq): mean and biased variance
    saved: Tensor  # for the backward, in the backend's own layout


class MixedCellBackward(NamedTuple):
    """Arguments of fastdarts::mixed_cell_backward."""

    grad: Tensor
    inputs: list[Tensor]
    ops: Tensor
    edges: Tensor | None
    weights: Tensor
    affine: Tensor | None
    statistics: Tensor
    saved: Tensor
    channels: Tensor | None
    graph: list[int]
    partial_channels: int
    eps: float
    batch_statistics: bool
    need_inputs: bool
    need_ops: bool  # and edges
    need_weights: bool  # and affine
    sync: int


class MixedCellGradients(NamedTuple):
    """Gradients of mixed_cell, empty if not needed."""

    grad_inputs: list[Tensor]
    grad_ops: Tensor
    grad_edges: Tensor
    grad_weights: Tensor
    grad_affine: Tensor


class ReLUConvBN(NamedTuple):
    """Arguments of fastdarts::relu_conv_bn: one layer, or two that are ready together."""

    xs: list[Tensor]
    weights: list[Tensor]  # of all layers
    counts: list[int]  # weights of each layer
    scales: list[Tensor]  # of the BNs' affine parameters; empty: none
    shifts: list[Tensor]
    running_means: list[Tensor]  # empty: the batch's statistics normalise
    running_vars: list[Tensor]
    eps: float
    sync: int


class ReLUConvBNResults(NamedTuple):
    """Results of fastdarts::relu_conv_bn."""

    outs: list[Tensor]
    normalised: list[Tensor]  # for the backward; empty without affine parameters: the outputs are normalised
    statistics: list[Tensor]  # float64 (2, D) each: mean and biased variance


class ReLUConvBNBackward(NamedTuple):
    """Arguments of fastdarts::relu_conv_bn_backward."""

    grads: list[Tensor]
    xs: list[Tensor]
    weights: list[Tensor]
    counts: list[int]
    scales: list[Tensor]
    normalised: list[Tensor]  # without affine parameters the outputs
    statistics: list[Tensor]
    eps: float
    batch_statistics: bool
    need_xs: list[bool]
    need_weights: bool  # and affine parameters
    sync: int


class ReLUConvBNGradients(NamedTuple):
    """Gradients of relu_conv_bn."""

    grad_xs: list[Tensor]  # empty tensors if not needed
    grad_weights: list[Tensor]  # empty if not needed
    grad_scales: list[Tensor]  # empty if not needed
    grad_shifts: list[Tensor]


class ConvBNChain(NamedTuple):
    """Arguments of fastdarts::conv_bn_chain; one entry a layer."""

    x: Tensor
    weights: list[Tensor]
    norm_weights: list[Tensor]
    norm_biases: list[Tensor]
    running_means: list[Tensor]  # empty: the batch's statistics normalise
    running_vars: list[Tensor]
    strides: list[int]
    outputs: int
    eps: float
    sync: int


class ConvBNChainResults(NamedTuple):
    """Results of fastdarts::conv_bn_chain."""

    outs: list[Tensor]
    ys: list[Tensor]  # for the backward, one a layer
    statistics: Tensor  # float64 (3, sum of D_i): mean, biased variance, and what the backend keeps


class ConvBNChainBackward(NamedTuple):
    """Arguments of fastdarts::conv_bn_chain_backward."""

    grads: list[Tensor]
    x: Tensor
    weights: list[Tensor]
    norm_weights: list[Tensor]
    norm_biases: list[Tensor]
    ys: list[Tensor]
    statistics: Tensor
    strides: list[int]
    eps: float
    batch_statistics: bool
    need_x: bool
    need_weights: bool  # and norms
    sync: int


class ConvBNChainGradients(NamedTuple):
    """Gradients of conv_bn_chain, empty if not needed."""

    grad_x: Tensor
    grad_weights: list[Tensor]
    grad_norm_weights: list[Tensor]
    grad_norm_biases: list[Tensor]


class PatchMask(NamedTuple):
    """Arguments of fastdarts::patch_mask and, on a GPU, fastdarts::patch_mask_cuda."""

    images: Tensor
    index: Tensor
    step: Tensor
    flip: Tensor
    fill: Tensor
    seed: int  # its 64 bits, signed
    stream: int
    patch_size: int
    num_masked: int
    mean: list[float]
    std: list[float]


class PatchMaskResults(NamedTuple):
    """Results of fastdarts::patch_mask."""

    x: Tensor
    mask: Tensor


class MaskedLoss(NamedTuple):
    """Arguments of fastdarts::masked_loss, which also returns the gradients if they are needed."""

    levels: list[Tensor]
    bias: Tensor
    images: Tensor
    flip: Tensor
    mask: Tensor
    mean: list[float]
    std: list[float]
    norm: str
    need_grad: bool


class MaskedLossResults(NamedTuple):
    """Results of fastdarts::masked_loss."""

    loss: Tensor
    grad_levels: list[Tensor]
    grad_bias: Tensor


class RandomResizedCrop(NamedTuple):
    """Arguments of fastdarts::random_resized_crop."""

    pixels: Tensor
    start: Tensor
    size: Tensor
    boxes: Tensor
    image_size: int
