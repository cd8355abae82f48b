"""What layers promise each other: what is trained and who keeps it going, a loader and its batches, ranks and their means.

Shapes: P parts of a trainable, N images a batch on this rank.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastdarts.batch import Batch

Step = Callable[[Tensor, Batch, Batch | None], tuple[Tensor, Tensor | None]]  # (number, train, val) -> the two losses


class InputStopped(RuntimeError):
    """No more batches come although nothing is known to be wrong with the files: a process that was killed, a stage that
    is stuck. The message is one line that names it; a command ends with it and exit status 1, and may be started again.
    """


class DivergedError(ArithmeticError):
    """Numbers are no longer finite, so that going on is pointless; the message says where."""


class Ranks(Protocol):
    """The processes that train together, each on an equal share of every batch (engine.World)."""

    @property
    def size(self) -> int: ...
    @property
    def is_main(self) -> bool: ...  # whether this one tells of what all have in common

    def average(self, flat: Tensor) -> None:
        """Replace `flat` by its mean over the ranks."""

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Make all tensors what they are on the rank that leads, in place."""


class Loader(Protocol):
    """An endless iterator of batches that knows the length of an epoch and where it stands."""

    def __len__(self) -> int: ...
    def __next__(self) -> Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Batches(Protocol):
    """A finite loader: the batches of an evaluation."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...


class Part(NamedTuple):
    """A set of parameters with an optimizer of its own: a search has two, the weights and alpha, a retraining one.

    name  in sentences: "the weights"
    loss  of its loss in progress lines, and in records with "_loss" behind it: "train"
    """

    name: str
    loss: str


class Extent(NamedTuple):
    """How far a training has come, or goes in all.

    steps   of all epochs
    passes  of a batch forward and backward: one in a step for each part that it moves
    """

    epochs: int
    steps: int
    passes: int


class StepReport(NamedTuple):
    """A finished step. Its losses stay on the device: reading one waits for the step.

    epoch    1-based
    step     of all `steps` of the training, 1-based
    images   passed forward and backward, by all ranks
    losses   by part, scalars; None for a part that the step left alone
    skipped  int64 (P,): updates skipped so far in this epoch, since a loss or gradient was not finite; the trainable's own
             counter, which goes on
    index    by part, int64 (N,): numbers of the images; None for a part that the step left alone
    """

    epoch: int
    step: int
    steps: int
    images: int
    losses: tuple[Tensor | None, ...]
    skipped: Tensor
    index: tuple[Tensor | None, ...]


class Hooks(NamedTuple):
    """What a trainable calls on its way; by default nothing happens.

    on_step        after each step; may raise, and what `state_dict` then gives holds
    interruptible  entered around what an exception may break off at any point: waiting for input, evaluating
    batches        gives the batches of an evaluation, and between two of them may raise
    """

    on_step: Callable[[StepReport], None] = lambda report: None
    interruptible: Callable[[], AbstractContextManager[Any]] = nullcontext
    batches: Callable[[Batches], Iterable[Batch]] = lambda batches: batches


NO_HOOKS = Hooks()


class Trainable(Protocol):
    """What is trained in epochs of steps, and can be saved and continued after any step (engine.Session keeps it going).

    skipped    int64 (P,) on `device`, as in StepReport
    positions  of its loaders after the last finished step
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
        """Train what is left; yields a record of plain values after each epoch.

        Keys: "epoch" (1-based), "step", "lr", for each part its loss' mean over the epoch as "NAME_loss" (None if it was left
        alone), "valid" (figures by name, or None); "seconds" of the steps, "input_seconds" of them spent waiting for batches,
        "images_per_s"; and whatever else there is to say.

        Raises DivergedError and InputStopped.
        """

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on, at any time but inside a step, as torch.load(..., weights_only=True) reads it.

        With "epoch" (an int) and "step" (of one element): finished ones. The tensors may be those that the next step changes.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. Raises RuntimeError, ValueError, KeyError or TypeError if it does not fit."""

    def move_loaders(self, positions: Any) -> None:
        """Go on with the batches after those at which `positions` was this attribute."""

    def named_tensors(self) -> dict[str, Tensor]:
        """What all ranks must hold alike, by name."""

    def seeking(self) -> bool:
        """Whether updates are still skipped to find a loss scale (float16)."""
