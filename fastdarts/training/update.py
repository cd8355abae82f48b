"""One training step of a network with labels: loss with the auxiliary head, gradient, guarded update, moving average."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.networks import DiscreteNetwork
from fastdarts.optim import Precision
from fastdarts.optim.pieces import average, take_update
from fastdarts.optim.updates import Buffers, Kept, guarded_step, non_finite
from fastdarts.protocols import Pieces, Reduce, Update
from fastdarts.training.augment import Prepare
from fastdarts.training.moving_average import MovingAverage


class WeightUpdate:
    """Update a network's weights by one step: cross entropy plus `auxiliary_weight` times that of the auxiliary head.

    optimizer        over the network's parameters
    prepare          augmentation and normalisation
    label_smoothing  of both losses, in [0, 1)
    grad_clip        maximum gradient norm; 0 = no clipping
    moving           moving average of the network, updated after each step
    reduce           averages a tensor over the ranks, each with an equal share of every batch: the loss, the gradients and
                     BatchNorm's running statistics, in one flat tensor

    An update with a non-finite loss or gradient is skipped on the device, as in search.Bilevel; `skipped`, int64 (1,), counts
    it. Nothing here synchronises with the host, so a step can be captured (protocols.Updates).
    """

    def __init__(
        self,
        network: DiscreteNetwork,
        optimizer: torch.optim.Optimizer,
        prepare: Prepare,
        *,
        auxiliary_weight: float = 0.0,
        label_smoothing: float = 0.0,
        grad_clip: float = 0.0,
        precision: Precision | None = None,
        moving: MovingAverage | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        self.network, self.optimizer, self.prepare = network, optimizer, prepare
        self.auxiliary_weight, self.label_smoothing, self.grad_clip = auxiliary_weight, label_smoothing, grad_clip
        self.weights: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.weights[0].device
        self.precision = precision or Precision(device=self.device)
        self.moving = moving
        self.reduce: Reduce | None = reduce
        self.stage: Callable[[str], AbstractContextManager[Any]] = nullcontext
        self.skipped = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._buffers = Buffers(network)

    def __call__(self, step: Tensor, train: Batch, val: Batch | None = None) -> tuple[Tensor, None]:
        """Run one step; returns the loss, a detached scalar. step: int64 of one element on the device; `val` is not read."""
        return take_update(self, "weights", step, train, val), None

    @property
    def optimizers(self) -> dict[Update, torch.optim.Optimizer]:
        return {"weights": self.optimizer}

    def order(self, with_val: bool) -> tuple[Update, ...]:
        return ("weights",)

    def captured_before(self, update: Update) -> tuple[Update, ...]:
        return ()

    def tensors(self) -> list[Tensor]:
        scale = self.precision.scale
        scales = [] if scale is None else [scale.value, scale.good]
        moving = [] if self.moving is None else self.moving.tensors()
        return [*self.network.parameters(), *self.network.buffers(), *moving, self.skipped, *scales]

    def obstacle(self) -> str | None:
        if not any(getattr(module, "sync", None) for module in self.network.modules()):
            return None
        return "BatchNorm's sums are synchronised between the ranks within the forward pass"

    def pieces(self, update: Update, step: Tensor, train: Batch, val: Batch | None) -> Pieces[Tensor]:
        """Run the step in pieces: yield the tensor to average, if there are ranks; return the loss."""
        before = self._buffers.kept()
        loss = self.loss(step, train)
        self.optimizer.zero_grad()
        self.precision.scaled(loss).backward(inputs=self.weights)
        loss, grads = loss.detach(), [w.grad for w in self.weights if w.grad is not None]
        yield from average([loss, *grads, *before.floating], self.reduce)
        bad = non_finite(loss, grads, self.precision.inverse())
        with self.stage("optimizer"):
            self._update(bad, before)
        return loss

    def _update(self, bad: Tensor, before: Kept) -> None:
        guarded_step(bad, self.optimizer, self.weights, self.grad_clip, before, self.skipped, self.precision)
        if self.moving is not None:
            self.moving.update(bad)

    def loss(self, step: Tensor, batch: Batch) -> Tensor:
        """Return the loss of the network, in training mode, on a batch; a scalar in the parameters' dtype."""
        x = self.prepare.train(batch, step, self.weights[0].dtype)
        with self.precision.autocast():
            logits, auxiliary = self.network(x)
        loss = self._cross_entropy(logits, batch.labels)
        if auxiliary is not None:
            loss = loss + self.auxiliary_weight * self._cross_entropy(auxiliary, batch.labels)
        return loss

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.to(self.weights[0].dtype), labels, label_smoothing=self.label_smoothing)
