"""A whole search: epochs of bilevel steps, with an evaluation and a genotype after each."""

import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.objectives import Classification, Objective
from fastdarts.ops.philox import Stream
from fastdarts.optim.epoch import Epoch
from fastdarts.optim.optimizers import load_optimizer, optimizer_state, set_rate
from fastdarts.protocols import NO_HOOKS, Batches, Extent, Hooks, Loader, Part, Ranks, Reduce, Step, StepReport
from fastdarts.search.bilevel import Bilevel
from fastdarts.search.carry import Carried
from fastdarts.search.collapse import collapse_figures
from fastdarts.search.early_stop import Seen, Stop, check_early_stop, judge, needs_hessian, seen
from fastdarts.search.evaluation import evaluate, hessian
from fastdarts.search.fixed_rows import FixedRows
from fastdarts.search.hiding import check_hiding, hide, share_of
from fastdarts.search.methods import METHODS, Method
from fastdarts.search.perturbation import Perturbation, Scores, check_selection, sentence, tuning_stage
from fastdarts.search.progressive import Progressive, Stage, check_stages, moving_epochs, rate_of, shrink, skip_dropout_rate
from fastdarts.search.relaxation import Kept
from fastdarts.search.selection import limit_skips
from fastdarts.search.setup import bilevel_of, tuning_of
from fastdarts.settings import SearchSettings
from fastdarts.spaces import Architecture, Space
from fastdarts.spaces.genotype import Genotype, read_architecture
from fastdarts.supernet import Network

log = logging.getLogger("fastdarts")


PARTS = Part("the weights", "train"), Part("alpha", "alpha")  # in the order of Bilevel.skipped
LOSSES = "train", "val"  # of an epoch's steps, by part


class Search:
    """Bilevel search of `supernet` under `objective`.

    train_loader, val_loader  endless loaders (data.FolderLoader); an epoch is len(train_loader) steps, and each step
                              that updates alpha takes the next batch of val_loader, from its current position
    settings                  learning rates, schedules, order; settings.seed initialises alpha
    eval_loader               a finite iterable of batches for `evaluate`, or None
    ranks                     the ranks of a distributed search; None: this process alone. Losses and metrics are over all ranks
    captured                  wraps a Bilevel so that its steps are captured (steps.cuda_graph.CapturedSteps); None: no
                              wrapper. Called for the Bilevel of each stage
    method                    provides relaxation and selection; the rest of a method is in the settings
    progressive               a search in stages, whose first stage has `supernet` and `objective`; settings.epochs counts all
                              stages. Learning rate, alpha's first epoch and dropout go by the epoch within the stage. The first
                              step after a stage's end begins the next stage, which replaces space, supernet, objective, bilevel
                              and take_step. load_state_dict may change the stage, too

    With settings.select "perturbation" one more stage follows, of as many epochs as its decisions need (perturbation): it has
    the supernet, objective and alpha of the stage before, and replaces bilevel, relaxation and take_step.

    take_step runs a step; replace it before the first one if at all.
    The modules keep their device and dtype; batches are copied to that device.

    `state_dict` is valid at any time outside take_step: inside an epoch too, also after an exception there.
    Raises ValueError for stages or a limit of skips that do not fit the settings or the space, ConfigError if
    settings.early_stop can never end this search, or if the method cannot search that space with these settings.
    """

    def __init__(
        self,
        supernet: Network,
        objective: Objective,
        train_loader: Loader,
        val_loader: Loader,
        settings: SearchSettings,
        *,
        eval_loader: Batches | None = None,
        ranks: Ranks | None = None,
        captured: Callable[[Bilevel], Step] | None = None,
        method: Method = METHODS["darts-1st"],
        progressive: Progressive | None = None,
    ) -> None:
        self.settings, self.method, self.progressive = settings, method, progressive
        self.train_loader, self.val_loader, self.eval_loader = train_loader, val_loader, eval_loader
        self.parts, self.ranks, self._captured = PARTS, ranks, captured
        self.stages = (Stage(settings.epochs, settings.begin),) if progressive is None else progressive.stages
        if sum(stage.epochs for stage in self.stages) != settings.epochs:
            raise ValueError(
                f"the stages have {[stage.epochs for stage in self.stages]} epochs, which do not add up to {settings.epochs}"
            )
        check_stages(self.stages, supernet.space, settings)
        check_early_stop(settings, supernet.space)
        method.relaxation.check(supernet.space, settings)
        check_selection(settings, method.relaxation, objective.needs_labels)
        check_hiding(settings, isinstance(objective, Classification))
        self.selection: Perturbation | None = None  # in its stage
        if settings.select == "perturbation":
            self.stages = (*self.stages, tuning_stage(settings, supernet.space, self.stages[-1]))
        if settings.early_stop == "eigenvalue" and eval_loader is None:
            raise ValueError("--early_stop eigenvalue: the eigenvalue is estimated on a batch of eval_loader, which is missing")
        self.history: list[Seen] = []  # statistics for early stopping, of the epochs that updated alpha
        self._install(supernet, objective, 0)
        self.epoch = 0  # finished epochs
        self.part = Epoch.of(*LOSSES)  # the current epoch
        self.positions = self._positions()  # of the loaders, after the last finished step
        self.step = torch.zeros(1, dtype=torch.int64, device=self.device)  # finished steps: keys their randomness

    def _install(self, supernet: Network, objective: Objective, stage: int) -> None:
        """Search these from now on, with a fresh alpha."""
        self.supernet, self.objective, self.stage = supernet, objective, stage
        self._kept: Kept | None = None
        supernet.restrict(None)
        self.bilevel = bilevel_of(
            supernet,
            objective,
            self.settings,
            relaxation=self.method.relaxation,
            seed=self.settings.seed + stage,
            reduce=self._reduce,
        )
        self.relaxation, self.precision, self.device = self.bilevel.relaxation, self.bilevel.precision, self.bilevel.device
        self.take_step: Step = self.bilevel if self._captured is None else self._captured(self.bilevel)

    @property
    def _reduce(self) -> Reduce | None:
        return None if self.ranks is None else self.ranks.average

    @property
    def _epoch_of_stage(self) -> int:
        """Return the number of finished epochs of the current stage."""
        return self.epoch - sum(stage.epochs for stage in self.stages[: self.stage])

    def _next_stage(self) -> None:
        """Drop the weakest candidates and begin the next stage, if the current one has ended."""
        number = self.stage + 1
        if number == len(self.stages) or self._epoch_of_stage < self.stages[self.stage].epochs:
            return
        stage, space = self.stages[number], self.supernet.space
        if stage.selects:
            self._select(number)
            return
        if stage.candidates is not None:
            space = shrink(space, self._weights(), stage.candidates)
        carried = Carried(self.bilevel) if stage.carry else None
        self._enter(number, space)
        if carried is not None:
            carried.put_into(self.bilevel, self.settings.seed + number)
        if self.ranks is not None:
            modules = self.supernet, self.objective
            tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
            self.ranks.broadcast([*self.relaxation.parameters(), *tensors])
        if self.ranks is None or self.ranks.is_main:
            log.info(f"stage {number + 1} of {len(self.stages)} begins: {stage}")

    def _enter(self, number: int, space: Space) -> None:
        """Initialise the beginning of a stage."""
        self.selection = None
        if self.progressive is None and number == 0:  # back from a selection
            self._install(self.supernet, self.objective, 0)
            return
        if self.progressive is None:
            raise ValueError(f"the state is of stage {number + 1} of a progressive search, this is a search of one stage")
        del self.supernet, self.objective, self.relaxation, self.bilevel, self.take_step
        gc.collect()  # timers and CUDA graphs of the old stage are in reference cycles: the next stage needs their memory
        self._install(*self.progressive.begin(number, space), number)

    def _select(self, number: int) -> None:
        """Initialise the stage of the selection, with the networks and alpha of the stage before."""
        bilevel = tuning_of(self.bilevel, self.settings, self._reduce)
        del self.take_step
        gc.collect()  # as in _enter
        self.bilevel, self.relaxation, self.stage = bilevel, bilevel.relaxation, number
        self.take_step = self.bilevel if self._captured is None else self._captured(self.bilevel)
        self.selection = Perturbation(self.settings, self.supernet.space)

    def _decide(self, epoch: int, hooks: Hooks) -> None:
        """Make the decisions before an epoch of the selection that have not been made yet."""
        rows = self.relaxation
        if self.selection is None or not isinstance(rows, FixedRows):
            return
        for kind, which, of_operation in self.selection.next(rows, epoch, self.stages[self.stage].epochs):
            scores = Scores(self.bilevel, self.val_loader, self.settings, hooks, self.ranks)
            decide = self.selection.operation if of_operation else self.selection.topology
            decide(scores, rows, kind, which)
            self.positions = self._positions()
            self._restrict()
            if self.ranks is None or self.ranks.is_main:
                log.info(sentence(self.selection.facts[-1]))

    def _restrict(self) -> None:
        """Compute none of the candidates that are ruled out; captured steps, which do, are captured again."""
        kept = self.relaxation.kept()
        if kept == self._kept:
            return
        self.supernet.restrict(kept)
        self._kept = kept
        if self._captured is not None and getattr(self.take_step, "captured", False):
            del self.take_step
            gc.collect()  # as in _enter
            self.bilevel.reduce = self._reduce  # without the timer that follows each captured one
            self.take_step = self._captured(self.bilevel)

    def run(self, hooks: Hooks = NO_HOOKS) -> Genotype | Architecture:
        """Run all remaining epochs and return the result."""
        for _ in self.epochs(hooks):
            pass
        return self.result()

    def epochs(self, hooks: Hooks = NO_HOOKS) -> Iterator[dict[str, Any]]:
        """Yield the record of each remaining epoch (see run_epoch), up to settings.epochs or to an early stop."""
        while not self.over:
            yield self.run_epoch(hooks)

    def run_epoch(self, hooks: Hooks = NO_HOOKS) -> dict[str, Any]:
        """Run one epoch, or its remaining steps; returns its record.

        Raises DivergedError if half of its losses are not finite, or if all updates of the weights or of alpha were skipped.
        The record holds plain values: losses (means over the epoch), rates, genotype, weights, collapse statistics. Its keys
        are those of a `metrics.jsonl` line of kind "epoch". "seconds" counts the steps alone, "input_seconds" of it the waiting
        for batches; "images_per_s" is their rate. Optional keys, present only where they apply: "skipped" updates (of the
        weights, of alpha), "not_finite" losses (train, alpha), which the means exclude; "stopped" if early stopping ends the
        search with this epoch (early_stop.Stop.facts); in a search in stages "stage" and its "candidates"; in a selection's
        stage the "decisions" before the epoch. "cells" describes the cell without settings.skip_limit.
        """
        s, part, steps = self.settings, self.part, len(self.train_loader)
        self._next_stage()
        stage, within = self.stages[self.stage], self._epoch_of_stage
        self._decide(within, hooks)
        rate = rate_of(s, self.stages, self.stage, within)
        set_rate(self.bilevel.weight_optimizer, rate)
        if stage.dropout:
            self.supernet.drop_skips(skip_dropout_rate(stage, within))
        self.relaxation.epoch_begins(within, stage.epochs)
        self._share = 1.0 if stage.selects else share_of(self.epoch, s.epochs)
        if s.edge_drop_path:
            self.supernet.drop_edges(self._share * s.edge_drop_path)
        if not part.steps:
            self.bilevel.skipped.zero_()
        self.supernet.train()
        self.objective.train()
        began = perf_counter() - part.seconds
        while part.steps < steps:
            self._advance(part, began, within >= stage.begin, hooks)
        train, alpha = part.means()
        epoch = self.epoch + 1
        record = {"epoch": epoch, "step": epoch * steps, "lr": rate, "train_loss": train.value, "alpha_loss": alpha.value}
        seconds = perf_counter() - began
        reporting = self.ranks is None or self.ranks.is_main
        part.check(record, PARTS, self.skipped.tolist(), seeking=self.seeking(), message=reporting)
        due = epoch % s.eval_every == 0 or epoch == self.total.epochs
        with hooks.interruptible():
            record["valid"] = self.evaluate(hooks) if due and self.eval_loader is not None else None
            if (s.hessian_every and epoch % s.hessian_every == 0) or needs_hessian(s, epoch):
                record["hessian"] = self.hessian()
        record |= self._architecture()
        history = self._history(record)
        if stop := judge(s, history):
            record["stopped"] = stop.facts()
            if not due and self.eval_loader is not None:  # the last epoch is always evaluated
                with hooks.interruptible():
                    record["valid"] = self.evaluate(hooks)
        record |= {"seconds": seconds, "input_seconds": part.input_seconds, "images_per_s": part.images / seconds}
        if self.selection is not None:
            record["decisions"], self.selection.facts = self.selection.facts, []
        self.epoch, self.part, self.history = epoch, Epoch.of(*LOSSES), history
        return record

    def _history(self, record: dict[str, Any]) -> list[Seen]:
        """Return `history` with this epoch, if a rule needs it. Statistics are means over the ranks, so all decide alike."""
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
        """Return the early stop that ended this search, or None."""
        return judge(self.settings, self.history)

    @property
    def over(self) -> bool:
        """Return whether no epoch is left."""
        return self.epoch >= self.total.epochs or self.stop is not None

    def result(self) -> Genotype | Architecture:
        """Return the search's result: the current genotype, or that of the epoch which an early stop chose."""
        return self.genotype() if self.stop is None else read_architecture(self.stop.genotype)

    def _advance(self, part: Epoch, began: float, moving: bool, hooks: Hooks) -> None:
        """Run the next step of the epoch; `moving` also updates alpha."""
        asked = perf_counter()
        with hooks.interruptible():
            train = next(self.train_loader).to(self.device)
            val = next(self.val_loader).to(self.device) if moving else None
        part.input_seconds += perf_counter() - asked
        train, val = self._hidden(train, Stream.TRAIN), None if val is None else self._hidden(val, Stream.VAL)
        train_loss, val_loss = self.take_step(self.step, train, val)
        self.step += 1
        count = (len(train.index) + (0 if val is None else len(val.index))) * (self.ranks.size if self.ranks else 1)
        part.images += count
        part.losses["train"].append(train_loss)
        if val_loss is not None:
            part.losses["val"].append(val_loss)
        part.seconds = perf_counter() - began
        self.positions = self._positions()
        if moving and part.steps == len(self.train_loader):  # with the last step, so that a resumed search does not repeat it
            self.relaxation.epoch_ended(self.epoch + 1)
            self._restrict()
        losses, index = (train_loss, val_loss), (train.index, None if val is None else val.index)
        steps = self.done.steps, self.total.steps
        hooks.on_step(StepReport(self.epoch + 1, *steps, count, losses, self.skipped, index))

    def _hidden(self, batch: Batch, stream: Stream) -> Batch:
        """Return the batch, with R-DARTS' cutout if it goes with drop path."""
        s, objective = self.settings, self.objective
        if not (s.edge_drop_path and s.edge_cutout and isinstance(objective, Classification)):
            return batch
        return hide(batch, s, self._share, self.step, stream, objective.mean)

    def seeking(self) -> bool:
        """Return whether this float16 search still skips updates to find its initial loss scale."""
        scale = self.precision.scale
        return scale is not None and float(scale.value) > 1

    def genotype(self) -> Genotype | Architecture:
        """Return the genotype of the current alpha, within settings.skip_limit."""
        if self.settings.skip_limit:
            return limit_skips(self.supernet.space, self._weights(), self.settings.skip_limit, self.method.selection)
        return self.method.selection(self.supernet.space, self._weights())

    def evaluate(self, hooks: Hooks = NO_HOOKS) -> dict[str, float]:
        """Return the objective's metrics over `eval_loader` (see evaluation.evaluate)."""
        options = {"ranks": self.ranks, "precision": self.precision}
        return evaluate(self.supernet, self.objective, self._weights(), hooks.batches(self._evaluated()), **options)

    def hessian(self) -> float:
        """Return the largest eigenvalue of the validation Hessian in alpha (evaluation.hessian), on the first batch."""
        return hessian(self.bilevel, next(iter(self._evaluated())).to(self.device), self.ranks)

    def _evaluated(self) -> Batches:
        if self.eval_loader is None:
            raise ValueError("this search has no eval_loader")
        return self.eval_loader

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on, as plain dicts and tensors (for torch.load(..., weights_only=True)).

        "part" (of Epoch) and "skipped" exist only inside an epoch, "history" only with early stopping. The next step may modify
        the tensors in place.
        """
        scale = self.precision.scale
        train, val = self.positions
        part = {"part": self.part.state_dict(), "skipped": self.skipped} if self.part.steps else {}
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
            **({"stage": self.stage + 1} if self.stage else {}),
            **({} if self.selection is None else {"decisions": self.selection.facts}),
            **self._stage_facts(),
            **({"history": self.history} if self.history else {}),
        } | ({} if scale is None else {"loss_scale": scale.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state`. Raises ValueError for a state of a stage that this search does not have."""
        self._go_to(state)
        self.epoch = state["epoch"]
        begun = Epoch.of(*LOSSES)
        self.part = begun.restored(state["part"], self.device) if "part" in state else begun
        self.history = state.get("history", [])
        if self.selection is not None:
            self.selection.facts = list(state["decisions"])
        self.step.copy_(state["step"])
        self.supernet.load_state_dict(state["supernet"])
        self.objective.load_state_dict(state["objective"])
        self.relaxation.load_state_dict(state["relaxation"])
        self._restrict()
        load_optimizer(self.bilevel.weight_optimizer, state["weight_optimizer"])
        load_optimizer(self.bilevel.arch_optimizer, state["arch_optimizer"])
        if "skipped" in state:
            self.skipped.copy_(state["skipped"])
        if self.precision.scale is not None and "loss_scale" in state:
            self.precision.scale.load_state_dict(state["loss_scale"])
        self.move_loaders((state["train_loader"], state["val_loader"]))

    def _go_to(self, state: dict[str, Any]) -> None:
        """Switch to the stage of `state`, with its candidates."""
        number = state.get("stage", 1) - 1
        if number >= len(self.stages):
            hint = "; continue it with --select perturbation" if "decisions" in state else ""
            raise ValueError(f"the state is of stage {number + 1}, this search has {len(self.stages)}{hint}")
        lists = {kind: tuple(map(tuple, edges)) for kind, edges in state.get("candidates", {}).items()}
        space = replace(self.supernet.space, **lists)
        if (number, space) == (self.stage, self.supernet.space):
            return
        before = number - self.stages[number].selects  # the stage of its networks
        if (before, space) != (self.stage, self.supernet.space):
            self._enter(before, space)
        if number != before:
            self._select(number)

    def _stage_facts(self) -> dict[str, Any]:
        """Return the stage's number, from 1, and its candidates by kind of cell and edge, for a search in stages."""
        if self.progressive is None:
            return {}
        space = self.supernet.space
        return {
            "stage": self.stage + 1,
            "candidates": {kind: [[*names] for names in space.candidates(kind)] for kind in space.kinds},
        }

    @property
    def done(self) -> Extent:
        """Return the finished extent: whole epochs, and every step."""
        steps = self.epoch * len(self.train_loader) + self.part.steps
        passes = self._passes(self.epoch) + self.part.passes
        return Extent(self.epoch, steps, passes)

    @property
    def total(self) -> Extent:
        """Return the extent of the whole search without an early stop."""
        epochs = sum(stage.epochs for stage in self.stages)
        return Extent(epochs, epochs * len(self.train_loader), self._passes(epochs))

    def _passes(self, epochs: int) -> int:
        return len(self.train_loader) * (epochs + moving_epochs(self.stages, epochs))

    @property
    def skipped(self) -> Tensor:
        """Return int64 (2,): skipped updates of the weights and of alpha so far in this epoch."""
        return self.bilevel.skipped

    def named_tensors(self) -> dict[str, Tensor]:
        """Return alpha, beta and all weights, by name."""
        named = {f"alpha {kind}": a for kind, a in self.relaxation.alpha.items()}
        named |= {f"beta {kind}": b for kind, b in self.relaxation.beta.items()}
        named |= dict(self.supernet.named_parameters())
        return named | {f"objective {name}": p for name, p in self.objective.named_parameters()}

    def move_loaders(self, positions: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Continue with the batches after `positions`, a former value of this attribute."""
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
            "cells": collapse_figures(self.supernet.space, weights, self.method.selection(self.supernet.space, weights)),
            "ops": {kind: w.ops.tolist() for kind, w in weights.items()},
            **self._stage_facts(),
        }
        if self.settings.edge_normalization:
            record["edges"] = {kind: w.edges.tolist() for kind, w in weights.items()}
        return record
