"""A whole search: epochs of bilevel steps, an evaluation and a genotype after each."""

from collections.abc import Callable, Iterable, Iterator
from math import isfinite
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.config import SearchSettings
from fastdarts.genotype import Genotype
from fastdarts.objectives import Objective
from fastdarts.ops.philox import Stream
from fastdarts.search.bilevel import Bilevel, frozen_buffers, held
from fastdarts.search.collapse import collapse_figures, dominant_eigenvalue
from fastdarts.search.relaxation import SoftmaxRelaxation
from fastdarts.search.schedules import learning_rate
from fastdarts.search.selection import argmax_genotype
from fastdarts.supernet import Supernet


class DivergedError(ArithmeticError):
    """The losses of an epoch are not finite; the message says which epoch."""


class Loader(Protocol):
    """An endless iterator of batches that knows the length of an epoch and where it stands."""

    def __len__(self) -> int: ...
    def __next__(self) -> Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class StepReport(NamedTuple):
    """What `on_step` is told after each step; the losses are tensors, so that reading them is the caller's choice."""

    epoch: int  # 1-based
    step: int  # of the whole search, 1-based
    steps: int  # of the whole search
    images: int  # that this step passed forward and backward
    train_loss: Tensor
    val_loss: Tensor | None


class Search:
    """Bilevel search of `supernet` under `objective`.

    train_loader, val_loader  endless loaders (data.FolderLoader); an epoch is len(train_loader) steps, and each step
                              that moves alpha takes the next batch of val_loader, wherever it stands
    settings                  learning rates, schedules, order; settings.seed starts alpha
    eval_loader               a finite iterable of batches for `evaluate`, or None
    on_step                   called after each step

    The modules are used where they are (device, dtype); batches are moved to them.
    """

    def __init__(
        self,
        supernet: Supernet,
        objective: Objective,
        train_loader: Loader,
        val_loader: Loader,
        settings: SearchSettings,
        *,
        eval_loader: Iterable[Batch] | None = None,
        on_step: Callable[[StepReport], None] | None = None,
    ) -> None:
        self.supernet, self.objective, self.settings = supernet, objective, settings
        self.train_loader, self.val_loader, self.eval_loader = train_loader, val_loader, eval_loader
        self.on_step = on_step
        weights = list(dict.fromkeys([*supernet.parameters(), *objective.parameters()]))
        self.device, dtype = weights[0].device, weights[0].dtype
        self.relaxation = SoftmaxRelaxation(
            supernet.space,
            edge_normalization=settings.edge_normalization,
            seed=settings.seed,
            device=self.device,
            dtype=dtype,
        )
        self.bilevel = Bilevel(
            supernet,
            objective,
            self.relaxation,
            torch.optim.SGD(
                weights,
                settings.learning_rate,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                fused=True,
            ),
            torch.optim.Adam(
                self.relaxation.parameters(),
                settings.arch_learning_rate,
                betas=(0.5, 0.999),
                weight_decay=settings.arch_weight_decay,
                fused=True,
            ),
            unrolled=settings.unrolled,
            grad_clip=settings.grad_clip,
            arch_grad_clip=settings.arch_grad_clip,
            weights_first=settings.step_order == "weights-first",
        )
        self.epoch = 0  # finished epochs
        self.step = torch.zeros(1, dtype=torch.int64, device=self.device)  # finished steps: keys their randomness

    def run(self) -> Genotype:
        """All remaining epochs; returns the genotype they end with."""
        for _ in self.epochs():
            pass
        return self.genotype()

    def epochs(self) -> Iterator[dict[str, Any]]:
        """The remaining epochs, one record each (see run_epoch)."""
        while self.epoch < self.settings.epochs:
            yield self.run_epoch()

    def run_epoch(self) -> dict[str, Any]:
        """One epoch. Returns plain values: losses (means over the epoch), rates, genotype, weights, collapse figures.

        Raises DivergedError when a loss was not finite.
        The keys are those of a `metrics.jsonl` line of kind "epoch", and "seconds" and "images_per_s" of the steps alone.
        """
        s = self.settings
        rate = learning_rate(self.epoch, s.epochs, s.learning_rate, s.learning_rate_min, s.warmup_epochs)
        self.bilevel.weight_optimizer.param_groups[0]["lr"] = rate
        self.supernet.train()
        self.objective.train()
        started, images = perf_counter(), 0
        train_losses, val_losses = [], []
        first = self.epoch * len(self.train_loader)
        for number in range(first + 1, first + len(self.train_loader) + 1):
            train = next(self.train_loader).to(self.device)
            val = next(self.val_loader).to(self.device) if self.epoch >= s.begin else None
            train_loss, val_loss = self.bilevel(self.step, train, val)
            self.step += 1
            count = len(train.index) + (0 if val is None else len(val.index))
            images += count
            train_losses.append(train_loss)
            if val_loss is not None:
                val_losses.append(val_loss)
            if self.on_step:
                steps = s.epochs * len(self.train_loader)
                self.on_step(StepReport(self.epoch + 1, number, steps, count, train_loss, val_loss))
        record = {
            "epoch": self.epoch + 1,
            "step": first + len(self.train_loader),
            "lr": rate,
            "train_loss": torch.stack(train_losses).mean().item(),
            "alpha_loss": torch.stack(val_losses).mean().item() if val_losses else None,
        }
        seconds = perf_counter() - started
        if not all(isfinite(record[name] or 0.0) for name in ("train_loss", "alpha_loss")):
            losses = f"train {record['train_loss']}, alpha {record['alpha_loss']}"
            raise DivergedError(f"epoch {record['epoch']}: the losses are not finite ({losses}); try a smaller learning_rate")
        self.epoch += 1
        due = self.epoch % s.eval_every == 0 or self.epoch == s.epochs
        record["valid"] = self.evaluate() if due and self.eval_loader is not None else None
        if s.hessian_every and self.epoch % s.hessian_every == 0:
            record["hessian"] = self.hessian()
        return record | self._architecture() | {"seconds": seconds, "images_per_s": images / seconds}

    def genotype(self) -> Genotype:
        """The cell pair that alpha stands for now."""
        return argmax_genotype(self.supernet.space, self._weights())

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The objective's figures over `eval_loader`, with BatchNorm's running statistics: means over its images."""
        if self.eval_loader is None:
            raise ValueError("this search was made without an eval_loader")
        self.supernet.eval()
        self.objective.eval()
        weights, sums, images = self._weights(), {}, 0
        for batch in self.eval_loader:
            batch = batch.to(self.device)
            images += len(batch.index)
            for name, value in self.objective.evaluate(self.supernet, weights, batch).items():
                sums[name] = sums.get(name, 0.0) + value.double() * len(batch.index)
        return {name: (total / images).item() for name, total in sums.items()}

    def hessian(self) -> float:
        """Largest eigenvalue of the Hessian in alpha of the loss on the first evaluation batch (R-DARTS)."""
        if self.eval_loader is None:
            raise ValueError("this search was made without an eval_loader")
        batch = next(iter(self.eval_loader)).to(self.device)
        alpha = list(self.relaxation.alpha.values())
        step = torch.zeros_like(self.step)

        def gradient() -> list[Tensor]:
            weights = self.relaxation.weights()
            return list(torch.autograd.grad(self.objective(self.supernet, weights, batch, step, Stream.EVAL), alpha))

        self.supernet.train()
        with frozen_buffers(self.supernet, self.objective), held(self.bilevel.weights):
            return dominant_eigenvalue(gradient, alpha)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next epoch depends on, as plain dicts and tensors (torch.load(..., weights_only=True) reads it)."""
        return {
            "epoch": self.epoch,
            "step": self.step.clone(),
            "supernet": self.supernet.state_dict(),
            "objective": self.objective.state_dict(),
            "relaxation": self.relaxation.state_dict(),
            "weight_optimizer": self.bilevel.weight_optimizer.state_dict(),
            "arch_optimizer": self.bilevel.arch_optimizer.state_dict(),
            "train_loader": self.train_loader.state_dict(),
            "val_loader": self.val_loader.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.epoch = state["epoch"]
        self.step.copy_(state["step"])
        self.supernet.load_state_dict(state["supernet"])
        self.objective.load_state_dict(state["objective"])
        self.relaxation.load_state_dict(state["relaxation"])
        self.bilevel.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.bilevel.arch_optimizer.load_state_dict(state["arch_optimizer"])
        self.train_loader.load_state_dict(state["train_loader"])
        self.val_loader.load_state_dict(state["val_loader"])

    @torch.no_grad()
    def _weights(self) -> dict:
        return self.relaxation.weights()

    def _architecture(self) -> dict[str, Any]:
        weights, genotype = self._weights(), self.genotype()
        record = {
            "genotype": str(genotype),
            "cells": collapse_figures(self.supernet.space, weights, genotype),
            "ops": {kind: w.ops.tolist() for kind, w in weights.items()},
        }
        if self.settings.edge_normalization:
            record["edges"] = {kind: w.edges.tolist() for kind, w in weights.items()}
        return record
