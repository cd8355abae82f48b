"""Indicators of collapse: cell statistics after each epoch, and the sharpness of the validation loss in alpha."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastdarts.spaces import CANDIDATES, Architecture, Kind, Space
from fastdarts.spaces.genotype import Genotype
from fastdarts.supernet import CellWeights


def collapse_figures(space: Space, weights: dict[Kind, CellWeights], genotype: Genotype | Architecture) -> dict[Kind, dict]:
    """Return {"operations", "skips", "entropy", "skip_minus_conv"} for each kind of cell in `weights`.

    operations       of the derived cell
    skips            its number of skip connections
    entropy          of the candidates' weights, in nats, mean over the edges
    skip_minus_conv  weight of skip minus the mean weight of the edge's convolutions, mean over the edges that have both
                     (None if no edge has)
    """
    figures: dict[Kind, dict] = {}
    for kind, cell in weights.items():
        p = cell.ops.detach().double()
        differences = []
        for row, names in zip(p.tolist(), space.candidates(kind), strict=True):
            by_family: dict[str, list[float]] = {}
            for w, name in zip(row, names, strict=False):
                by_family.setdefault(CANDIDATES[name].family, []).append(w)
            if "skip" in by_family and "conv" in by_family:
                conv = by_family["conv"]
                differences.append(by_family["skip"][0] - sum(conv) / len(conv))
        operations = genotype.operations(kind)
        figures[kind] = {
            "operations": len(operations),
            "skips": sum(CANDIDATES[op].family == "skip" for op in operations),
            "entropy": torch.special.entr(p).sum(1).mean().item(),
            "skip_minus_conv": sum(differences) / len(differences) if differences else None,
        }
    return figures


def dominant_eigenvalue(
    gradient: Callable[[], list[Tensor]], parameters: list[Tensor], iterations: int = 10, radius: float = 1e-3
) -> float:
    """Return the Hessian eigenvalue of largest magnitude of a loss in `parameters` (R-DARTS' indicator of collapse).

    gradient    returns the loss' gradient at the parameters' current values, each of its parameter's shape
    radius      step of the central differences (H v = (g(a + r v) - g(a - r v)) / 2r)
    Power iteration from a fixed direction; the parameters are restored exactly.

    Unlike double backward (R-DARTS), the differences count kinks of the loss (ReLU, max-pooling) within the step as
    curvature. Their share shrinks with the number of activations; with few channels and small batches it can be most of
    the value, with either sign, at any radius.
    """
    saved = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(0)
    v = [torch.randn(p.shape, generator=generator).to(p) for p in parameters]
    value = 0.0

    def gradient_at(sign: float) -> list[Tensor]:
        with torch.no_grad():
            for p, s, d in zip(parameters, saved, v, strict=True):
                p.copy_(s + sign * radius * d)
        return gradient()

    try:
        for _ in range(iterations):
            norm = torch.stack([d.square().sum() for d in v]).sum().sqrt()
            if not norm > 0:
                return 0.0
            v = [d / norm for d in v]
            plus, minus = gradient_at(1.0), gradient_at(-1.0)
            product = [(a - b) / (2 * radius) for a, b in zip(plus, minus, strict=True)]
            value = sum(float((a * b).sum()) for a, b in zip(v, product, strict=True))
            v = product
    finally:
        with torch.no_grad():
            for p, s in zip(parameters, saved, strict=True):
                p.copy_(s)
    return value
