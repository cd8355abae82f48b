"""Training of a network in epochs, with evaluations after them: what engine.Session runs in a retraining."""

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdarts.networks import DiscreteNetwork
from fastdarts.optim import Epoch
from fastdarts.optim.optimizers import load_optimizer, optimizer_state, set_rate
from fastdarts.optim.schedules import Schedule
from fastdarts.protocols import NO_HOOKS, Batches, Extent, Hooks, Loader, Part, Ranks, Step, StepReport
from fastdarts.training.evaluation import Scores, evaluate
from fastdarts.training.update import WeightUpdate

PARTS = (Part("the weights", "train"),)


class Passes(NamedTuple):
    """Evaluation passes of a training run; None: not there.

    val   images held back from training, which choose the best epoch
    test  test images, which choose nothing
    """

    val: Batches | None = None
    test: Batches | None = None


class Trainer:
    """Train `update.network` for `epochs` epochs.

    train_loader    endless loader; an epoch is len(train_loader) steps
    num_classes     of the network
    schedule        learning rate by epoch
    drop_path       drop-path rate of the last epoch: that of epoch e, from 0, is drop_path * e / epochs
    passes          evaluation passes, run every `eval_every` epochs and after the last one
    ranks           the ranks of a distributed training; None: this process alone
    captured        wraps the WeightUpdate so that its steps are captured; None: no wrapper

    `scores` holds the last epoch's evaluations by name: "valid", "test", and "valid_ema", "test_ema" of the moving average.
    `state_dict` is valid at any time outside take_step, inside an epoch too.
    """

    def __init__(
        self,
        update: WeightUpdate,
        train_loader: Loader,
        *,
        epochs: int,
        num_classes: int,
        schedule: Schedule,
        drop_path: float = 0.0,
        passes: Passes = Passes(),  # noqa: B008 - a tuple
        eval_every: int = 1,
        ranks: Ranks | None = None,
        captured: Callable[[WeightUpdate], Step] | None = None,
    ) -> None:
        self.update, self.train_loader, self.passes, self.ranks = update, train_loader, passes, ranks
        self.epochs_in_all, self.num_classes, self.schedule = epochs, num_classes, schedule
        self.drop_path, self.eval_every = drop_path, eval_every
        self.parts, self.device, self.precision = PARTS, update.device, update.precision
        self.take_step: Step = update if captured is None else captured(update)
        self.scores: dict[str, Scores] = {}
        self.epoch = 0  # finished epochs
        self.part = Epoch.of("train")  # the current epoch
        self.positions = train_loader.state_dict()  # of the loader, after the last finished step
        self.step = torch.zeros(1, dtype=torch.int64, device=self.device)  # finished steps: keys their randomness

    def epochs(self, hooks: Hooks = NO_HOOKS) -> Iterator[dict[str, Any]]:
        """Yield the record of each remaining epoch (see run_epoch)."""
        while self.epoch < self.epochs_in_all:
            yield self.run_epoch(hooks)

    def run_epoch(self, hooks: Hooks = NO_HOOKS) -> dict[str, Any]:
        """Run one epoch, or its remaining steps. Returns plain values: loss (mean over the epoch), rate, accuracies.

        "valid" and "test" are figures (loss, top1, top5) by name, "valid_ema" and "test_ema" those of the moving average; None
        without that pass, or in an epoch without evaluation. Raises DivergedError as Epoch.check does.
        """
        part, within = self.part, self.epoch
        rate, drop = self.schedule(within, self.epochs_in_all), self.drop_path * within / self.epochs_in_all
        set_rate(self.update.optimizer, rate)
        self.network.drop_path_rate.fill_(drop)
        if not part.steps:
            self.skipped.zero_()
        self.network.train()
        began = perf_counter() - part.seconds
        while part.steps < len(self.train_loader):
            self._advance(part, began, hooks)
        (train,) = part.means()
        epoch, seconds = self.epoch + 1, perf_counter() - began
        record: dict[str, Any] = {"epoch": epoch, "step": epoch * len(self.train_loader), "lr": rate, "drop_path": drop}
        record["train_loss"] = train.value
        main = self.ranks is None or self.ranks.is_main
        part.check(record, PARTS, self.skipped.tolist(), seeking=self.seeking(), message=main)
        due = epoch % self.eval_every == 0 or epoch == self.epochs_in_all
        with hooks.interruptible():
            self.scores = self.evaluate(hooks) if due else {}
        figures = {name: scores.figures() for name, scores in self.scores.items()}
        record |= dict.fromkeys(("valid", "test")) | figures
        record |= {"seconds": seconds, "input_seconds": part.input_seconds, "images_per_s": part.images / seconds}
        self.epoch, self.part = epoch, Epoch.of("train")
        return record

    def _advance(self, part: Epoch, began: float, hooks: Hooks) -> None:
        """Run the next step of the epoch."""
        asked = perf_counter()
        with hooks.interruptible():
            batch = next(self.train_loader).to(self.device)
        part.input_seconds += perf_counter() - asked
        loss, _ = self.take_step(self.step, batch, None)
        self.step += 1
        images = len(batch.index) * (self.ranks.size if self.ranks else 1)
        part.images += images
        part.losses["train"].append(loss)
        part.seconds = perf_counter() - began
        self.positions = self.train_loader.state_dict()
        steps = self.done.steps, self.total.steps
        hooks.on_step(StepReport(self.epoch + 1, *steps, images, (loss,), self.skipped, (batch.index,)))

    def evaluate(self, hooks: Hooks = NO_HOOKS) -> dict[str, Scores]:
        """Return the scores of all passes, of the network and of its moving average."""
        networks = {"": self.network} | ({} if self.update.moving is None else {"_ema": self.update.moving.network})
        passes = {name: each for name, each in (("valid", self.passes.val), ("test", self.passes.test)) if each is not None}
        options: dict[str, Any] = {"precision": self.precision, "ranks": self.ranks}
        return {
            f"{name}{suffix}": evaluate(network, self.update.prepare, hooks.batches(each), self.num_classes, **options)
            for name, each in passes.items()
            for suffix, network in networks.items()
        }

    @property
    def network(self) -> DiscreteNetwork:
        return self.update.network

    @property
    def skipped(self) -> Tensor:
        """int64 (1,): skipped updates so far in this epoch."""
        return self.update.skipped

    @property
    def done(self) -> Extent:
        steps = self.epoch * len(self.train_loader) + self.part.steps
        return Extent(self.epoch, steps, steps)

    @property
    def total(self) -> Extent:
        steps = self.epochs_in_all * len(self.train_loader)
        return Extent(self.epochs_in_all, steps, steps)

    def seeking(self) -> bool:
        """Return whether updates are still skipped to find the initial loss scale of float16."""
        scale = self.precision.scale
        return scale is not None and float(scale.value) > 1

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on, as plain dicts and tensors.

        "part" (of Epoch) and "skipped" exist only inside an epoch. The next step may modify the tensors in place.
        """
        scale, moving = self.precision.scale, self.update.moving
        part = {"part": self.part.state_dict(), "skipped": self.skipped} if self.part.steps else {}
        return {
            "epoch": self.epoch,
            "step": self.step.clone(),
            "network": self.network.state_dict(),
            "optimizer": optimizer_state(self.update.optimizer),
            "train_loader": self.positions,
            **part,
            **({} if moving is None else {"ema": moving.state_dict()}),
            **({} if scale is None else {"loss_scale": scale.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state`."""
        self.epoch = state["epoch"]
        begun = Epoch.of("train")
        self.part = begun.restored(state["part"], self.device) if "part" in state else begun
        self.step.copy_(state["step"])
        self.network.load_state_dict(state["network"])
        load_optimizer(self.update.optimizer, state["optimizer"])
        if "skipped" in state:
            self.skipped.copy_(state["skipped"])
        if self.update.moving is not None:
            self.update.moving.load_state_dict(state["ema"])
        if self.precision.scale is not None and "loss_scale" in state:
            self.precision.scale.load_state_dict(state["loss_scale"])
        self.move_loaders(state["train_loader"])

    def move_loaders(self, positions: dict[str, Any]) -> None:
        """Continue with the batches after `positions`, a former value of this attribute."""
        self.train_loader.load_state_dict(positions)
        self.positions = positions

    def named_tensors(self) -> dict[str, Tensor]:
        """Return all weights by name."""
        return dict(self.network.named_parameters())
