"""What a search asks of those it works with: its ranks and its loaders; and what it tells of a step."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from fastdarts.batch import Batch

Step = Callable[[Tensor, Batch, Batch | None], tuple[Tensor, Tensor | None]]  # (number, train, val) -> the two losses


class Ranks(Protocol):
    """The processes that search together, each on an equal share of every batch (engine.distributed.World)."""

    size: int
    leads: bool  # whether this one tells of what all have in common

    def average(self, flat: Tensor) -> None:
        """Replace `flat` by its mean over the ranks."""

    def copy_from_lead(self, tensors: Iterable[Tensor]) -> None:
        """Make all tensors what they are on the rank that leads, in place."""


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
