"""State of the current epoch, from which its record is computed; saved so that a search can resume within an epoch."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


class Mean(NamedTuple):
    """Mean of the finite losses (None if there are none); `of` counts all losses, `bad` the non-finite ones."""

    value: float | None
    bad: int
    of: int


@dataclass
class Epoch:
    """Losses and timings of the current epoch's steps; losses stay on the device until `means` reads them.

    train, val     losses, scalars; fewer or no val losses before alpha's first update
    images         passed forward and backward
    seconds        of the steps, `input_seconds` of them waiting for batches
    """

    train: list[Tensor] = field(default_factory=list)
    val: list[Tensor] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0
    input_seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Return the number of finished steps."""
        return len(self.train)

    def means(self) -> tuple[Mean, Mean]:
        """Return the means of the training and the validation losses; synchronises with the device."""
        return _mean(self.train), _mean(self.val)

    def state_dict(self) -> dict[str, Any]:
        return {
            "train": torch.stack(self.train),
            "val": torch.stack(self.val) if self.val else None,
            "images": self.images,
            "seconds": self.seconds,
            "input_seconds": self.input_seconds,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> Self:
        """Restore from state_dict, with the losses on `device`."""
        train, val = ([] if s is None else list(s.to(device)) for s in (state["train"], state["val"]))
        return cls(train, val, state["images"], state["seconds"], state["input_seconds"])


def _mean(losses: list[Tensor]) -> Mean:
    if not losses:
        return Mean(None, 0, 0)
    stacked = torch.stack(losses)
    finite = stacked[stacked.isfinite()]
    return Mean(finite.mean().item(), len(stacked) - len(finite), len(stacked))
