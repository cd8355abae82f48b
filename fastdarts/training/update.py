"""One training step of a network with labels: loss with the auxiliary head, gradient, guarded update, moving average."""

from collections.abc import Callable, Generator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from fastdarts.batch import Batch
from fastdarts.optim import Precision
from fastdarts.optim.updates import Buffers, non_finite, step_if_finite
from fastdarts.training.augment import Prepare
from fastdarts.training.average import Average

Reduce = Callable[[Tensor], None]  # replaces a flat tensor by its mean over the ranks, in place


class WeightUpdate:
    """Update a network's weights by one step: cross entropy plus `auxiliary_weight` times that of the auxiliary head.

    network          returns (logits, auxiliary logits or None), each (N, classes)
    optimizer        over the network's parameters
    prepare          augmentation and normalisation
    label_smoothing  of both losses, in [0, 1)
    grad_clip        maximum gradient norm; 0 = no clipping
    average          moving average of the network, updated after each step
    reduce           averages a tensor over the ranks, each with an equal share of every batch: the loss, the gradients and
                     BatchNorm's running statistics, in one flat tensor

    An update with a non-finite loss or gradient is skipped on the device, as in search.Bilevel; `skipped`, int64 (1,), counts
    it. Nothing here synchronises with the host, so a step can be captured.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        prepare: Prepare,
        *,
        auxiliary_weight: float = 0.0,
        label_smoothing: float = 0.0,
        grad_clip: float = 0.0,
        precision: Precision | None = None,
        average: Average | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        self.network, self.optimizer, self.prepare = network, optimizer, prepare
        self.auxiliary_weight, self.label_smoothing, self.grad_clip = auxiliary_weight, label_smoothing, grad_clip
        self.weights: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.weights[0].device
        self.precision = precision or Precision(device=self.device)
        self.average, self.reduce = average, reduce
        self.skipped = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._buffers = Buffers(network)

    def __call__(self, step: Tensor, train: Batch, val: Batch | None = None) -> tuple[Tensor, None]:
        """Run one step; returns the loss, a detached scalar. step: int64 of one element on the device; `val` is not read."""
        pieces = self.pieces("weights", step, train, val)
        while True:
            try:
                flat = next(pieces)
            except StopIteration as end:
                return end.value, None
            if self.reduce is not None:
                self.reduce(flat)

    def pieces(self, update: str, step: Tensor, train: Batch, val: Batch | None) -> Generator[Tensor, None, Tensor]:
        """Run the step in pieces: yield the tensor to average, if there are ranks; return the loss."""
        before = self._buffers.kept()
        loss = self.loss(step, train)
        self.optimizer.zero_grad()
        self.precision.scaled(loss).backward(inputs=self.weights)
        loss, grads = loss.detach(), [w.grad for w in self.weights if w.grad is not None]
        if self.reduce is not None:
            tensors = [loss, *grads, *before.floating]
            flat = torch.cat([t.reshape(-1) for t in tensors])
            yield flat
            parts = flat.split([t.numel() for t in tensors])
            torch._foreach_copy_(tensors, [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)])
        bad = non_finite(loss, grads, self.precision.inverse())
        if self.grad_clip:
            clip_grad_norm_(self.weights, self.grad_clip)
        step_if_finite(bad, self.optimizer)
        self.optimizer.zero_grad()
        before.restore_where(bad)
        self.skipped += bad.long()
        if self.precision.scale is not None:
            self.precision.scale.update(bad)
        if self.average is not None:
            self.average.update()
        return loss

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
