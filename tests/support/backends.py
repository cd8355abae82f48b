"""Which backends of the cells' ops a test runs on, and what packed tensors are called in a checkpoint."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from fastdarts.ops.backend import refusals
from fastdarts.supernet import MixedEdges


def missing(*ops: str) -> str | None:
    """Why the C++ kernels of these ops cannot be tested here, or None."""
    reasons = (refusals(op, torch.device("cpu"), torch.float32)["cpu"] for op in ops)
    return next((why for why in reasons if why), None)


WHY_NOT = missing("mixed_cell", "relu_conv_bn", "conv_bn_chain")
needs_native = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
BACKENDS = ["definition", pytest.param("cpu", marks=needs_native)]


def by_darts_names(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by parameter of `module`, its cells' packed ones taken apart under the names that checkpoints have."""
    edges = {path: m for path, m in module.named_modules() if isinstance(m, MixedEdges)}
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        path, _, last = name.rpartition(".")
        packed = path in edges and last == "weights"
        out |= {f"{path}.{n}": t for n, t in edges[path].unpacked(tensor).items()} if packed else {name: tensor}
    return out
