"""Evaluation between epochs: the objective's metrics, and the sharpness of its loss in alpha."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.objectives import Objective
from fastdarts.ops.philox import Stream
from fastdarts.optim.precision import Precision
from fastdarts.optim.randomness import seeded
from fastdarts.protocols import Ranks
from fastdarts.search.bilevel import Bilevel, frozen, frozen_buffers
from fastdarts.search.collapse import dominant_eigenvalue
from fastdarts.spaces import Kind
from fastdarts.supernet import CellWeights, Network


@torch.no_grad()
def evaluate(
    supernet: Network,
    objective: Objective,
    weights: Mapping[Kind, CellWeights],
    batches: Iterable[Batch],
    *,
    precision: Precision,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Return the objective's metrics over `batches`: means over the images of all ranks.

    BatchNorm uses running statistics if it has them. Each call uses the same random numbers and leaves torch's generators
    unchanged. The modules are left in evaluation mode.
    """
    supernet.eval()
    objective.eval()
    device = next(supernet.parameters()).device
    sums: dict[str, Tensor] = {}
    images = 0
    with seeded(device):
        for batch in batches:
            batch = batch.to(device)
            images += len(batch.index)
            with precision.autocast():
                figures = objective.evaluate(supernet, weights, batch)
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value.double() * len(batch.index)
    totals = torch.stack([*sums.values(), torch.tensor(images, dtype=torch.float64, device=device)])
    if ranks is not None:
        ranks.average(totals)
    return dict(zip(sums, (totals[:-1] / totals[-1]).tolist(), strict=True))


def hessian(bilevel: Bilevel, batch: Batch, ranks: Ranks | None = None) -> float:
    """Return the largest eigenvalue of the Hessian in alpha of the loss on `batch` (R-DARTS), per rank; never under autocast.

    Objective joint excludes its factor from the gradient although it depends on alpha. Its eigenvalue is therefore that of the
    gradient's Jacobian, which is not exactly symmetric. The modules are left in training mode.
    """
    supernet, objective, relaxation = bilevel.supernet, bilevel.objective, bilevel.relaxation
    alpha = list(relaxation.alpha.values())
    step = torch.zeros(1, dtype=torch.int64, device=bilevel.device)

    def gradient() -> list[Tensor]:
        weights = relaxation.weights()
        with seeded(bilevel.device):  # otherwise noise would dominate the difference of two gradients
            grads = torch.autograd.grad(objective(supernet, weights, batch, step, Stream.EVAL), alpha)
        if ranks is None:
            return list(grads)
        flat = torch.cat([g.reshape(-1) for g in grads])
        ranks.average(flat)
        return [part.view(g.shape) for part, g in zip(flat.split([g.numel() for g in grads]), grads, strict=True)]

    supernet.train()
    objective.train()
    with frozen_buffers(supernet, objective), frozen(bilevel.weights):
        return dominant_eigenvalue(gradient, alpha)
