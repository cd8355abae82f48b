"""A small supernet, its mixing weights and a batch, for the tests of objectives."""

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.spaces import KINDS, S0
from fastdarts.supernet import CellWeights, Supernet


def net(dtype: torch.dtype = torch.float64, backend: str = "auto") -> Supernet:
    torch.manual_seed(3)
    return Supernet(S0, C=4, layers=3, backend=backend).to(dtype)


def mixing(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], dict[str, CellWeights]]:
    """Alpha, and weights that depend on it."""
    g = torch.Generator().manual_seed(0)
    alpha = [torch.randn(14, 8, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for _ in KINDS]
    return alpha, {kind: CellWeights(a.softmax(1)) for kind, a in zip(KINDS, alpha, strict=True)}


def batch(side: int = 16, count: int = 3, classes: int = 3, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randint(0, 256, (count, side, side, 3), generator=g, dtype=torch.uint8),
        torch.arange(count) % classes,
        torch.tensor([5, 1_000_003, 42, 7, 8, 9])[:count],
        torch.tensor([True, False, True, False, False, True])[:count],
    )


STEP = torch.tensor([12])
