"""A whole search: epochs of bilevel steps, an evaluation and a genotype after each."""

import logging
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
from fastdarts.search.optimizers import arch_optimizer, load_optimizer, optimizer_state, set_rate, weight_optimizer
from fastdarts.search.precision import Precision
from fastdarts.search.relaxation import SoftmaxRelaxation
from fastdarts.search.schedules import learning_rate
from fastdarts.search.selection import argmax_genotype
from fastdarts.supernet import Supernet

log = logging.getLogger("fastdarts")


class DivergedError(ArithmeticError):
    """The losses of an epoch are not finite, or none of its updates could be made; the message says which epoch."""


PARTS = ("the weights", "alpha")  # what Bilevel.skipped counts, in its order
Step = Callable[[Tensor, Batch, Batch | None], tuple[Tensor, Tensor | None]]


class Ranks(Protocol):
    """The processes that search together, each on an equal share of every batch (engine.distributed.World)."""

    size: int

    def average(self, flat: Tensor) -> None:
        """Replace `flat` by its mean over the ranks."""


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
    skipped: Tensor  # int64 (2,): updates of the weights and of alpha skipped so far in this epoch; Bilevel's own counter


class Search:
    """Bilevel search of `supernet` under `objective`.

    train_loader, val_loader  endless loaders (data.FolderLoader); an epoch is len(train_loader) steps, and each step
                              that moves alpha takes the next batch of val_loader, wherever it stands
    settings                  learning rates, schedules, order; settings.seed starts alpha
    eval_loader               a finite iterable of batches for `evaluate`, or None
    on_step                   called after each step
    ranks                     the ranks that search together; None: this process alone. Losses and figures are those of all

    take_step is what makes a step: `bilevel`, or what engine.cuda_graph makes of it, to be set before the first one.
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
        ranks: Ranks | None = None,
    ) -> None:
        self.supernet, self.objective, self.settings = supernet, objective, settings
        self.train_loader, self.val_loader, self.eval_loader = train_loader, val_loader, eval_loader
        self.on_step, self.ranks = on_step, ranks
        weights = list(dict.fromkeys([*supernet.parameters(), *objective.parameters()]))
        self.device, dtype = weights[0].device, weights[0].dtype
        self.relaxation = SoftmaxRelaxation(
            supernet.space,
            edge_normalization=settings.edge_normalization,
            seed=settings.seed,
            device=self.device,
            dtype=dtype,
        )
        s = settings
        self.precision = Precision(s.amp, self.device)
        self.bilevel = Bilevel(
            supernet,
            objective,
            self.relaxation,
            weight_optimizer(
                weights, s.learning_rate, momentum=s.momentum, weight_decay=s.weight_decay, backend=s.optimizer_backend
            ),
            arch_optimizer(
                self.relaxation.parameters(),
                s.arch_learning_rate,
                weight_decay=s.arch_weight_decay,
                backend=s.optimizer_backend,
            ),
            unrolled=s.unrolled,
            grad_clip=s.grad_clip,
            arch_grad_clip=s.arch_grad_clip,
            weights_first=s.step_order == "weights-first",
            precision=self.precision,
            reduce=None if ranks is None else ranks.average,
        )
        self.take_step: Step = self.bilevel
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

        Raises DivergedError when a loss was not finite, or when all updates of the weights or of alpha had to be skipped.
        The keys are those of a `metrics.jsonl` line of kind "epoch", and of the steps alone "seconds", of which
        "input_seconds" were spent waiting for batches, and "images_per_s";
        "skipped" (of the weights, of alpha) only where updates were.
        """
        s = self.settings
        rate = learning_rate(self.epoch, s.epochs, s.learning_rate, s.learning_rate_min, s.warmup_epochs)
        set_rate(self.bilevel.weight_optimizer, rate)
        self.bilevel.skipped.zero_()
        self.supernet.train()
        self.objective.train()
        started, waited, images = perf_counter(), 0.0, 0
        train_losses, val_losses = [], []
        first = self.epoch * len(self.train_loader)
        for number in range(first + 1, first + len(self.train_loader) + 1):
            asked = perf_counter()
            train = next(self.train_loader).to(self.device)
            val = next(self.val_loader).to(self.device) if self.epoch >= s.begin else None
            waited += perf_counter() - asked
            train_loss, val_loss = self.take_step(self.step, train, val)
            self.step += 1
            count = (len(train.index) + (0 if val is None else len(val.index))) * (self.ranks.size if self.ranks else 1)
            images += count
            train_losses.append(train_loss)
            if val_loss is not None:
                val_losses.append(val_loss)
            if self.on_step:
                steps = s.epochs * len(self.train_loader)
                skipped = self.bilevel.skipped
                self.on_step(StepReport(self.epoch + 1, number, steps, count, train_loss, val_loss, skipped))
        record = {
            "epoch": self.epoch + 1,
            "step": first + len(self.train_loader),
            "lr": rate,
            "train_loss": torch.stack(train_losses).mean().item(),
            "alpha_loss": torch.stack(val_losses).mean().item() if val_losses else None,
        }
        seconds = perf_counter() - started
        self._check(record, (len(train_losses), len(val_losses)))
        self.epoch += 1
        due = self.epoch % s.eval_every == 0 or self.epoch == s.epochs
        record["valid"] = self.evaluate() if due and self.eval_loader is not None else None
        if s.hessian_every and self.epoch % s.hessian_every == 0:
            record["hessian"] = self.hessian()
        return (
            record
            | self._architecture()
            | {
                "seconds": seconds,
                "input_seconds": waited,
                "images_per_s": images / seconds,
            }
        )

    def _check(self, record: dict[str, Any], updates: tuple[int, int]) -> None:
        """Raise DivergedError if the epoch came to nothing; say, and note in the record, how many updates were skipped."""
        epoch = f"epoch {record['epoch']}"
        if not all(isfinite(record[name] or 0.0) for name in ("train_loss", "alpha_loss")):
            losses = f"train {record['train_loss']}, alpha {record['alpha_loss']}"
            raise DivergedError(f"{epoch}: the losses are not finite ({losses}); try a smaller learning_rate")
        skipped = self.bilevel.skipped.tolist()
        if not any(skipped):
            return
        record["skipped"] = skipped
        told = " and ".join(f"{n} of {of} updates of {what}" for n, of, what in zip(skipped, updates, PARTS, strict=True) if n)
        scale = self.precision.scale
        seeking = scale is not None and float(scale.value) > 1  # a float16 search that still looks for its loss scale
        if not seeking and any(n == of for n, of in zip(skipped, updates, strict=True) if of):
            raise DivergedError(f"{epoch}: {told} had gradients that are not finite; try a smaller learning_rate")
        log.warning(f"{epoch}: {told} were skipped, their gradients were not finite")

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
            with self.precision.autocast():
                figures = self.objective.evaluate(self.supernet, weights, batch)
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value.double() * len(batch.index)
        totals = torch.stack([*sums.values(), torch.tensor(images, dtype=torch.float64, device=self.device)])
        if self.ranks is not None:
            self.ranks.average(totals)
        return dict(zip(sums, (totals[:-1] / totals[-1]).tolist(), strict=True))

    def hessian(self) -> float:
        """Largest eigenvalue of the Hessian in alpha of the loss on the first evaluation batch (R-DARTS); never in autocast."""
        if self.eval_loader is None:
            raise ValueError("this search was made without an eval_loader")
        batch = next(iter(self.eval_loader)).to(self.device)
        alpha = list(self.relaxation.alpha.values())
        step = torch.zeros_like(self.step)

        def gradient() -> list[Tensor]:
            weights = self.relaxation.weights()
            grads = torch.autograd.grad(self.objective(self.supernet, weights, batch, step, Stream.EVAL), alpha)
            if self.ranks is None:
                return list(grads)
            flat = torch.cat([g.reshape(-1) for g in grads])
            self.ranks.average(flat)
            return [part.view(g.shape) for part, g in zip(flat.split([g.numel() for g in grads]), grads, strict=True)]

        self.supernet.train()
        with frozen_buffers(self.supernet, self.objective), held(self.bilevel.weights):
            return dominant_eigenvalue(gradient, alpha)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next epoch depends on, as plain dicts and tensors (torch.load(..., weights_only=True) reads it)."""
        scale = self.precision.scale
        return {
            "epoch": self.epoch,
            "step": self.step.clone(),
            "supernet": self.supernet.state_dict(),
            "objective": self.objective.state_dict(),
            "relaxation": self.relaxation.state_dict(),
            "weight_optimizer": optimizer_state(self.bilevel.weight_optimizer),
            "arch_optimizer": optimizer_state(self.bilevel.arch_optimizer),
            "train_loader": self.train_loader.state_dict(),
            "val_loader": self.val_loader.state_dict(),
        } | ({} if scale is None else {"loss_scale": scale.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.epoch = state["epoch"]
        self.step.copy_(state["step"])
        self.supernet.load_state_dict(state["supernet"])
        self.objective.load_state_dict(state["objective"])
        self.relaxation.load_state_dict(state["relaxation"])
        load_optimizer(self.bilevel.weight_optimizer, state["weight_optimizer"])
        load_optimizer(self.bilevel.arch_optimizer, state["arch_optimizer"])
        if self.precision.scale is not None and "loss_scale" in state:
            self.precision.scale.load_state_dict(state["loss_scale"])
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
