"""Peak memory of a search's bilevel steps, for its plan."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdarts import steps
from fastdarts.batch import Batch
from fastdarts.objectives import Objective
from fastdarts.ops.backend import choose
from fastdarts.ops.philox import Stream
from fastdarts.optim.precision import Amp, Precision
from fastdarts.search import Bilevel, SoftmaxRelaxation
from fastdarts.search.bilevel import frozen
from fastdarts.steps.memory_counter import Counted
from fastdarts.supernet import Network


def search_bytes(
    supernet: Network,
    objective: Objective,
    relaxation: SoftmaxRelaxation,
    batch: Batch,
    device: torch.device | str,
    *,
    amp: Amp = "off",
    unrolled: bool = False,
    hessian: bool = False,
    prefetched: int = 0,
    averaged: bool = False,
) -> int:
    """Return the peak bytes of bilevel steps on `device`, with both updates and two batches like `batch`.

    Modules, relaxation and batch are on the meta device; steps.step_bytes says what is counted. The backends are those
    selected for `device`.

    amp         precision of the forward passes. Requires the device to be present
    unrolled    second order, with its copies of the weights
    hessian     also an estimate of the Hessian in alpha: a backward in alpha, in float32 for any amp
    prefetched  batches waiting on the device
    averaged    gradients are averaged over ranks, in one flat tensor
    """

    def make(
        supernet: Network, objective: Objective, relaxation: SoftmaxRelaxation, counter: Counted
    ) -> list[Callable[..., object]]:
        counter.watch(objective)
        weights = list(dict.fromkeys([*supernet.parameters(), *objective.parameters()]))
        sgd = steps.allocate_state(torch.optim.SGD(weights, 0.1, momentum=0.9))
        adam = steps.allocate_state(torch.optim.Adam(relaxation.parameters()))
        reduce = (lambda flat: None) if averaged else None
        bilevel = _Counting(supernet, objective, relaxation, sgd, adam, unrolled=unrolled, reduce=reduce)
        bilevel.precision = Precision(amp, bilevel.device)
        return [bilevel, bilevel.hessian] if hessian else [bilevel]

    fused = choose("mixed_cell", supernet.backend, torch.device(device), next(supernet.parameters()).dtype) != "definition"
    parts = supernet, objective, relaxation
    return steps.step_bytes(parts, make, batch, device, fused=fused, amp=amp, batches=2, prefetched=prefetched)


class _Counting(Bilevel):
    """Bilevel whose updates allocate no memory, like fused optimizers'."""

    def _update(self, bad: Tensor, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        optimizer.zero_grad()

    def hessian(self, step: Tensor, train: Batch, val: Batch) -> None:
        """Run the backward of an estimate of the Hessian in alpha."""
        with frozen(self.weights):
            loss = self.objective(self.supernet, self.relaxation.weights(), train, step, Stream.EVAL)
            torch.autograd.grad(loss, list(self.relaxation.alpha.values()))
