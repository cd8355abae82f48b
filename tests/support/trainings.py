"""A small training of one network, for tests of what a step of any training goes through."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdarts.batch import Batch
from fastdarts.optim import Precision
from fastdarts.optim.optimizers import weight_optimizer
from fastdarts.optim.pieces import average, take_update
from fastdarts.optim.updates import Buffers, Kept, non_finite, step_if_finite
from fastdarts.protocols import Pieces, Reduce, Update

DECAY = 0.75  # of the moving average


class Training:
    """Cross entropy of a network on Batch.labels: protocols.Updates with one update.

    averaged  a copy of the network that follows it: an exponential moving average of parameters and buffers; None: none
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        averaged: nn.Module | None = None,
        precision: Precision | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        self.network, self.optimizer, self.averaged = network, optimizer, averaged
        self.weights = list(network.parameters())
        self.device = self.weights[0].device
        self.precision = precision or Precision(device=self.device)
        self.reduce: Reduce | None = reduce
        self.stage: Callable[[str], AbstractContextManager[Any]] = nullcontext
        self.skipped = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._buffers = Buffers(network)

    def __call__(self, step: Tensor, train: Batch, val: Batch | None) -> tuple[Tensor, None]:
        return take_update(self, "weights", step, train, val), None

    @property
    def optimizers(self) -> dict[Update, torch.optim.Optimizer]:
        return {"weights": self.optimizer}

    def order(self, with_val: bool) -> tuple[Update, ...]:
        return ("weights",)

    def captured_before(self, update: Update) -> tuple[Update, ...]:
        return ()

    def tensors(self) -> list[Tensor]:
        networks = [self.network] if self.averaged is None else [self.network, self.averaged]
        return [*(t for n in networks for t in (*n.parameters(), *n.buffers())), self.skipped]

    def obstacle(self) -> str | None:
        return None

    def pieces(self, update: Update, step: Tensor, train: Batch, val: Batch | None) -> Pieces[Tensor]:
        before = self._buffers.kept()
        loss = self.loss(train)
        self.optimizer.zero_grad()
        loss.backward(inputs=self.weights)
        loss, grads = loss.detach(), [w.grad for w in self.weights if w.grad is not None]
        yield from average([loss, *grads, *before.floating], self.reduce)
        bad = non_finite(loss, grads, self.precision.one)
        with self.stage("optimizer"):
            self.update(bad, before)
        return loss

    def loss(self, train: Batch) -> Tensor:
        pixels = (train.images.float() / 255).permute(0, 3, 1, 2).to(self.weights[0].dtype)
        with self.precision.autocast():
            logits = self.network(pixels)
        return F.cross_entropy(logits.to(self.weights[0].dtype), train.labels)

    @torch.no_grad()
    def update(self, bad: Tensor, before: Kept) -> None:
        step_if_finite(bad, self.optimizer)
        self.optimizer.zero_grad()
        before.restore_where(bad)
        self.skipped += bad.long()
        if self.averaged is not None:
            means, values = ([*n.parameters(), *n.buffers()] for n in (self.averaged, self.network))
            for mean, value in zip(means, values, strict=True):
                mean.copy_(DECAY * mean + (1 - DECAY) * value)


def network(width: int, classes: int) -> nn.Module:
    """Two convolutions with BatchNorm, a linear layer; images of 3 channels and any size."""
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, stride=2)]
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def make(
    classes: int = 4,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    reduce: Reduce | None = None,
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None,
) -> Training:
    """SGD with momentum and a rate that float32 holds exactly, unless another optimizer is given, and a moving average."""
    torch.manual_seed(5)
    net = network(6, classes).to(device, dtype)
    weights: list[Tensor] = list(net.parameters())
    sgd = weight_optimizer(weights, 2**-4, momentum=0.9, weight_decay=3e-4) if optimizer is None else optimizer(weights)
    return Training(net, sgd, deepcopy(net).requires_grad_(False), reduce=reduce)


def everything(training: Training) -> dict[str, Tensor]:
    """Copies of all that a step may change, by name; the counter of skipped updates apart."""
    named = {f"network {n}": t for n, t in training.network.state_dict().items()}
    named |= {f"average {n}": t for n, t in training.averaged.state_dict().items()}
    for i, p in enumerate(training.weights):
        named |= {f"optimizer {i} {n}": t for n, t in training.optimizer.state.get(p, {}).items()}
    return {n: t.detach().clone() for n, t in named.items()}
