"""A whole search: epochs of bilevel steps, an evaluation and a genotype after each."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.config import SearchSettings
from fastdarts.genotype import Genotype, read_architecture
from fastdarts.objectives import Objective
from fastdarts.ops.philox import Stream
from fastdarts.search.bilevel import Bilevel, frozen_buffers, held
from fastdarts.search.collapse import collapse_figures, dominant_eigenvalue
from fastdarts.search.early_stop import Seen, Stop, check_early_stop, judge, needs_hessian, seen
from fastdarts.search.epoch import Epoch
from fastdarts.search.optimizers import arch_optimizer, load_optimizer, optimizer_state, set_rate, weight_optimizer
from fastdarts.search.precision import Precision
from fastdarts.search.relaxation import SoftmaxRelaxation
from fastdarts.search.schedules import learning_rate
from fastdarts.search.selection import argmax_genotype
from fastdarts.spaces import Architecture
from fastdarts.supernet import Supernet

log = logging.getLogger("fastdarts")


class DivergedError(ArithmeticError):
    """Half the losses of an epoch are not finite, or none of its updates could be made; the message says which epoch."""


PARTS = ("the weights", "alpha")  # what Bilevel.skipped counts, in its order
LOSSES = ("train", "alpha")
Step = Callable[[Tensor, Batch, Batch | None], tuple[Tensor, Tensor | None]]


class Ranks(Protocol):
    """The processes that search together, each on an equal share of every batch (engine.distributed.World)."""

    size: int
    leads: bool  # whether this one tells of what all have in common

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
    train_index: Tensor | None = None  # int64 (N,): the step's images
    val_index: Tensor | None = None


class Search:
    """Bilevel search of `supernet` under `objective`.

    train_loader, val_loader  endless loaders (data.FolderLoader); an epoch is len(train_loader) steps, and each step
                              that moves alpha takes the next batch of val_loader, wherever it stands
    settings                  learning rates, schedules, order; settings.seed starts alpha
    eval_loader               a finite iterable of batches for `evaluate`, or None
    on_step                   called after each step
    ranks                     the ranks that search together; None: this process alone. Losses and figures are those of all
    Raises ConfigError where settings.early_stop could never end this search.

    take_step is what makes a step: `bilevel`, or what engine.cuda_graph makes of it, to be set before the first one.
    interruptible() is entered around what may be broken off by an exception at any point: waiting for input, evaluating.
    The modules are used where they are (device, dtype); batches are moved to them.

    What `state_dict` gives holds at every moment outside take_step: inside an epoch too, also after an exception there.
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
        check_early_stop(settings, supernet.space)
        if settings.early_stop == "eigenvalue" and eval_loader is None:
            raise ValueError("--early_stop eigenvalue: the eigenvalue is estimated on a batch of an eval_loader, give one")
        self.history: list[Seen] = []  # what early stopping knows of the epochs in which alpha moved
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
                weights,
                s.learning_rate,
                momentum=s.momentum,
                weight_decay=s.weight_decay,
                nesterov=s.nesterov,
                backend=s.optimizer_backend,
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
        self.interruptible: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.epoch = 0  # finished epochs
        self.part = Epoch()  # of the one under way
        self.positions = self._positions()  # of the loaders, after the last finished step
        self.step = torch.zeros(1, dtype=torch.int64, device=self.device)  # finished steps: keys their randomness

    def run(self) -> Genotype | Architecture:
        """All remaining epochs; returns their result."""
        for _ in self.epochs():
            pass
        return self.result()

    def epochs(self) -> Iterator[dict[str, Any]]:
        """The remaining epochs, one record each (see run_epoch): up to settings.epochs, or to an early stop."""
        while not self.over:
            yield self.run_epoch()

    def run_epoch(self) -> dict[str, Any]:
        """One epoch, or what is left of it. Returns plain values: losses (means over the epoch), rates, genotype, weights,
        collapse figures.

        Raises DivergedError when half of its losses are not finite, or when all updates of the weights or of alpha had to be
        skipped. The keys are those of a `metrics.jsonl` line of kind "epoch", and of the steps alone "seconds", of which
        "input_seconds" were spent waiting for batches, and "images_per_s". Only where there were any: "skipped" updates (of
        the weights, of alpha), "not_finite" losses (train, alpha), which the means leave out; and "stopped" where
        early stopping ends the search with this epoch (early_stop.Stop.facts).
        """
        s, part, steps = self.settings, self.part, len(self.train_loader)
        rate = learning_rate(self.epoch, s.epochs, s.learning_rate, s.learning_rate_min, s.warmup_epochs)
        set_rate(self.bilevel.weight_optimizer, rate)
        if not part.steps:
            self.bilevel.skipped.zero_()
        self.supernet.train()
        self.objective.train()
        began = perf_counter() - part.seconds
        while part.steps < steps:
            self._advance(part, began)
        train, alpha = part.means()
        epoch = self.epoch + 1
        record = {"epoch": epoch, "step": epoch * steps, "lr": rate, "train_loss": train.value, "alpha_loss": alpha.value}
        seconds = perf_counter() - began
        self._check(record)
        due = epoch % s.eval_every == 0 or epoch == s.epochs
        with self.interruptible():
            record["valid"] = self.evaluate() if due and self.eval_loader is not None else None
            if (s.hessian_every and epoch % s.hessian_every == 0) or needs_hessian(s, epoch):
                record["hessian"] = self.hessian()
        record |= self._architecture()
        history = self._history(record)
        if stop := judge(s, history):
            record["stopped"] = stop.facts()
            if not due and self.eval_loader is not None:  # the last epoch is always evaluated
                with self.interruptible():
                    record["valid"] = self.evaluate()
        record |= {"seconds": seconds, "input_seconds": part.input_seconds, "images_per_s": part.images / seconds}
        self.epoch, self.part, self.history = epoch, Epoch(), history
        return record

    def _history(self, record: dict[str, Any]) -> list[Seen]:
        """`history` with this epoch, if a rule looks at it; its figures are the ranks' mean, so that all judge alike."""
        if self.settings.early_stop == "off" or record["epoch"] <= self.settings.begin:
            return self.history
        known = seen(record)
        if self.ranks is not None:
            figures = torch.tensor([known["skips"], known["hessian"]], dtype=torch.float64, device=self.device)
            self.ranks.average(figures)
            known["skips"], known["hessian"] = figures.tolist()
        return [*self.history, known]

    @property
    def stop(self) -> Stop | None:
        """The early stop that has ended this search, or None."""
        return judge(self.settings, self.history)

    @property
    def over(self) -> bool:
        """Whether no epoch is left."""
        return self.epoch >= self.settings.epochs or self.stop is not None

    def result(self) -> Genotype | Architecture:
        """The cell pair that the search has come to: what alpha stands for, or that of the epoch an early stop chose."""
        return self.genotype() if self.stop is None else read_architecture(self.stop.genotype)

    def _advance(self, part: Epoch, began: float) -> None:
        """The next step of the epoch."""
        asked = perf_counter()
        with self.interruptible():
            train = next(self.train_loader).to(self.device)
            val = next(self.val_loader).to(self.device) if self.epoch >= self.settings.begin else None
        part.input_seconds += perf_counter() - asked
        train_loss, val_loss = self.take_step(self.step, train, val)
        self.step += 1
        count = (len(train.index) + (0 if val is None else len(val.index))) * (self.ranks.size if self.ranks else 1)
        part.images += count
        part.train.append(train_loss)
        if val_loss is not None:
            part.val.append(val_loss)
        part.seconds = perf_counter() - began
        self.positions = self._positions()
        if self.on_step:
            steps = len(self.train_loader)
            number, of = self.epoch * steps + part.steps, self.settings.epochs * steps
            indices = train.index, None if val is None else val.index
            self.on_step(StepReport(self.epoch + 1, number, of, count, train_loss, val_loss, self.bilevel.skipped, *indices))

    def _check(self, record: dict[str, Any]) -> None:
        """Raise DivergedError if the epoch came to nothing; say, and note in the record, what was skipped or not finite."""
        epoch, means = f"epoch {record['epoch']}", self.part.means()
        if any(mean.bad and 2 * mean.bad >= mean.of for mean in means):
            losses = " and ".join(f"{m.bad} of {m.of} {name}" for m, name in zip(means, LOSSES, strict=True) if m.of)
            raise DivergedError(f"{epoch}: the losses are not finite ({losses}); try a smaller learning_rate")
        if any(mean.bad for mean in means):
            record["not_finite"] = [mean.bad for mean in means]
        skipped = self.bilevel.skipped.tolist()
        if not any(skipped):
            return
        record["skipped"] = skipped
        parts = zip(skipped, means, PARTS, strict=True)
        told = " and ".join(f"{n} of {mean.of} updates of {what}" for n, mean, what in parts if n)
        if not self.seeking() and any(n == mean.of for n, mean in zip(skipped, means, strict=True) if mean.of):
            raise DivergedError(f"{epoch}: {told} had gradients that are not finite; try a smaller learning_rate")
        if self.ranks is None or self.ranks.leads:
            log.warning(f"{epoch}: {told} were skipped, their gradients were not finite")

    def seeking(self) -> bool:
        """Whether this is a float16 search that still looks for its loss scale, skipping updates until it is small enough."""
        scale = self.precision.scale
        return scale is not None and float(scale.value) > 1

    def genotype(self) -> Genotype | Architecture:
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
        """Everything the next step depends on, as plain dicts and tensors (torch.load(..., weights_only=True) reads it).

        Only inside an epoch: "part" (of Epoch) and "skipped". "history" only with early stopping. The tensors may be those that
        the next step changes.
        """
        scale = self.precision.scale
        train, val = self.positions
        part = {"part": self.part.state_dict(), "skipped": self.bilevel.skipped} if self.part.steps else {}
        return {
            "epoch": self.epoch,
            "step": self.step.clone(),
            "supernet": self.supernet.state_dict(),
            "objective": self.objective.state_dict(),
            "relaxation": self.relaxation.state_dict(),
            "weight_optimizer": optimizer_state(self.bilevel.weight_optimizer),
            "arch_optimizer": optimizer_state(self.bilevel.arch_optimizer),
            "train_loader": train,
            "val_loader": val,
            **part,
            **({"history": self.history} if self.history else {}),
        } | ({} if scale is None else {"loss_scale": scale.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.epoch = state["epoch"]
        self.part = Epoch.from_state(state["part"], self.device) if "part" in state else Epoch()
        self.history = state.get("history", [])
        self.step.copy_(state["step"])
        self.supernet.load_state_dict(state["supernet"])
        self.objective.load_state_dict(state["objective"])
        self.relaxation.load_state_dict(state["relaxation"])
        load_optimizer(self.bilevel.weight_optimizer, state["weight_optimizer"])
        load_optimizer(self.bilevel.arch_optimizer, state["arch_optimizer"])
        if "skipped" in state:
            self.bilevel.skipped.copy_(state["skipped"])
        if self.precision.scale is not None and "loss_scale" in state:
            self.precision.scale.load_state_dict(state["loss_scale"])
        self.move_loaders((state["train_loader"], state["val_loader"]))

    def move_loaders(self, positions: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Go on with the batches after those at which `positions` was this attribute."""
        for loader, position in zip((self.train_loader, self.val_loader), positions, strict=True):
            loader.load_state_dict(position)
        self.positions = positions

    def _positions(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.train_loader.state_dict(), self.val_loader.state_dict()

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
