"""An existing DARTS cell made fast in place, and compared with its original."""

import torch
from torch import Tensor, nn

import fastdarts


def separable(C: int) -> nn.Module:
    """Make DARTS' separable convolution of 3 x 3."""
    half = [nn.ReLU(), nn.Conv2d(C, C, 3, 1, 1, groups=C, bias=False), nn.Conv2d(C, C, 1, bias=False)]
    other = [nn.ReLU(), nn.Conv2d(C, C, 3, 1, 1, groups=C, bias=False), nn.Conv2d(C, C, 1, bias=False)]
    return nn.Sequential(*half, nn.BatchNorm2d(C, affine=False), *other, nn.BatchNorm2d(C, affine=False))


class MixedOp(nn.Module):
    """A weighted sum of candidates, as every DARTS code has it."""

    def __init__(self, C: int) -> None:
        super().__init__()
        pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(C, affine=False))
        self._ops = nn.ModuleList([pool, separable(C), nn.Identity()])

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))


class Network(nn.Module):
    """Three mixed operations in a row, with their alpha."""

    def __init__(self, C: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, C, 3, 1, 1, bias=False)
        self.edges = nn.ModuleList(MixedOp(C) for _ in range(3))
        self.alpha = nn.Parameter(1e-3 * torch.randn(3, 3))

    def arch_parameters(self) -> list[Tensor]:
        return [self.alpha]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for edge, weights in zip(self.edges, self.alpha.softmax(-1), strict=True):
            x = edge(x, weights)
        return x.mean((2, 3))


if __name__ == "__main__":
    model = Network()
    print(fastdarts.convert(model))
    fastdarts.verify(model, torch.randn(16, 3, 32, 32))
