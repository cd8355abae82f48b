"""Interfaces between layers: trainables and their hooks, steps and their updates, loaders and batches, ranks.

Shapes: P parts of a trainable, N images a batch on this rank.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from fastdarts.batch import Batch

T = TypeVar("T")
Step = Callable[[Tensor, Batch, Batch | None], tuple[Tensor, Tensor | None]]  # (number, train, val) -> the two losses
Update = Literal["weights", "alpha"]  # updates of a step: of the weights on its first batch, of alpha on its second
Reduce = Callable[[Tensor], None]  # replaces a flat tensor by its mean over the ranks, in place
Pieces = Generator[Tensor, None, T]  # yields each flat tensor that has to be averaged before it resumes


class InputStopped(RuntimeError):
    """Input ended without a known fault of the files: a killed process, or a stuck stage.

    The message is one line that names it; a command prints it and exits with status 1, and may be restarted.
    """


class DivergedError(ArithmeticError):
    """Non-finite numbers end the training; the message says where."""


class Ranks(Protocol):
    """Data-parallel processes, each on an equal share of every batch (engine.World)."""

    @property
    def size(self) -> int: ...
    @property
    def is_main(self) -> bool: ...  # whether this rank logs facts common to all

    def average(self, flat: Tensor) -> None:
        """Replace `flat` by its mean over the ranks."""

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy all tensors from the main rank, in place."""


class Loader(Protocol):
    """Infinite iterator of batches with an epoch length and a position."""

    def __len__(self) -> int: ...
    def __next__(self) -> Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Batches(Protocol):
    """A finite loader: the batches of an evaluation."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...


class Updates(Protocol):
    """A Step made of updates on its device: what steps captures, times and plans (search.Bilevel, a training's update).

    An update never synchronises with the host, and is skipped on the device if its loss or gradient is not finite.

    reduce  averages over the ranks between the pieces of an update; None: one process, and each update is one piece
    stage   context manager of a named stage, replaced by a timer: each update is the stage of its name, the part of it that
            clips and steps is the stage "optimizer"
    """

    reduce: Reduce | None
    stage: Callable[[str], AbstractContextManager[Any]]

    @property
    def device(self) -> torch.device: ...
    @property
    def optimizers(self) -> Mapping[Update, torch.optim.Optimizer]: ...  # of all updates

    def __call__(self, step: Tensor, train: Batch, val: Batch | None) -> tuple[Tensor, Tensor | None]:
        """Run one step and return the losses of the weights' and of alpha's update, detached scalars; None: not updated.

        step: int64 tensor of one element on the batches' device; keys the randomness of this step.
        """

    def order(self, with_val: bool) -> Sequence[Update]:
        """Return the updates of a step with or without a second batch, in order; "weights" is always one of them."""

    def pieces(self, update: Update, step: Tensor, train: Batch, val: Batch | None) -> Pieces[Tensor]:
        """Run an update in pieces, and return its loss: yield each tensor to average; one piece without `reduce`."""

    def captured_before(self, update: Update) -> Sequence[Update]:
        """Return the updates that have to be captured before this one: those that create state which it reads."""

    def tensors(self) -> Iterable[Tensor]:
        """Return all tensors that a step changes in place, except the optimizers' state; a tensor may occur twice."""

    def obstacle(self) -> str | None:
        """Return None, or a sentence why its steps cannot be captured, whatever the optimizers."""


class Part(NamedTuple):
    """Set of parameters with a separate optimizer: a search has two, the weights and alpha, a retraining one.

    name  name in messages: "the weights"
    loss  name of its loss in progress lines and, with the suffix "_loss", in records: "train"
    """

    name: str
    loss: str


class Extent(NamedTuple):
    """Progress or total length of a training run.

    steps   steps over all epochs
    passes  forward and backward passes of a batch: one per step for each updated part
    """

    epochs: int
    steps: int
    passes: int


class StepReport(NamedTuple):
    """Finished step. Its losses stay on the device: reading one waits for the step.

    epoch    1-based
    step     out of all `steps` of the training run, 1-based
    images   images passed forward and backward, over all ranks
    losses   scalars by part; None for a part the step does not update
    skipped  int64 (P,): updates skipped so far in this epoch for a non-finite loss or gradient; the trainable's live counter
    index    int64 (N,) by part: image numbers; None for a part the step does not update
    """

    epoch: int
    step: int
    steps: int
    images: int
    losses: tuple[Tensor | None, ...]
    skipped: Tensor
    index: tuple[Tensor | None, ...]


class Hooks(NamedTuple):
    """Callbacks of a trainable; no-ops by default.

    on_step        called after each step; may raise, and `state_dict` is then valid
    interruptible  context manager for work that an exception may interrupt at any point: waiting for input, evaluating
    batches        wraps the batches of an evaluation; may raise between two of them
    """

    on_step: Callable[[StepReport], None] = lambda report: None
    interruptible: Callable[[], AbstractContextManager[Any]] = nullcontext
    batches: Callable[[Batches], Iterable[Batch]] = lambda batches: batches


NO_HOOKS = Hooks()


class Trainable(Protocol):
    """Model trained in epochs of steps that can be saved and resumed after any step (run by engine.Session).

    skipped    int64 (P,) on `device`, as in StepReport
    positions  loader positions after the last finished step
    """

    @property
    def parts(self) -> Sequence[Part]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def done(self) -> Extent: ...
    @property
    def total(self) -> Extent: ...
    @property
    def skipped(self) -> Tensor: ...
    @property
    def positions(self) -> Any: ...

    def epochs(self, hooks: Hooks) -> Iterator[dict[str, Any]]:
        """Train the remaining epochs; yields a record of plain values after each.

        Keys: "epoch" (1-based), "step", "lr", for each part the mean of its loss over the epoch as "NAME_loss" (None without
        updates), "valid" (figures by name, or None); "seconds" of the steps, of which "input_seconds" waiting for batches,
        "images_per_s"; and any additional entries.

        Raises DivergedError and InputStopped.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the complete state between two steps, in types that torch.load(..., weights_only=True) reads.

        Includes the finished "epoch" (an int) and "step" (of one element). The next step may modify its tensors.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`. Raises RuntimeError, ValueError, KeyError or TypeError if it does not fit."""

    def move_loaders(self, positions: Any) -> None:
        """Continue with the batches after `positions`, a former value of this attribute."""

    def named_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that must be equal on all ranks, by name."""

    def seeking(self) -> bool:
        """Return whether updates are still skipped to find a loss scale (float16)."""
