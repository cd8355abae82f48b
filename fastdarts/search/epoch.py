"""The epoch that is under way: what its record is made of, so that a search can be saved and continued inside it."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


class Mean(NamedTuple):
    """Of the finite ones among `of` losses, None of none at all; `bad` are not finite."""

    value: float | None
    bad: int
    of: int


@dataclass
class Epoch:
    """Losses of its steps so far, which stay on the device until they are asked for, and what the steps took.

    train, val     losses, scalars; of val fewer, or none, before alpha moves
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
        """That are done."""
        return len(self.train)

    def means(self) -> tuple[Mean, Mean]:
        """Of both losses; waits for the device."""
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
        """What state_dict was taken of, with its losses on `device`."""
        train, val = ([] if s is None else list(s.to(device)) for s in (state["train"], state["val"]))
        return cls(train, val, state["images"], state["seconds"], state["input_seconds"])


def _mean(losses: list[Tensor]) -> Mean:
    if not losses:
        return Mean(None, 0, 0)
    stacked = torch.stack(losses)
    finite = stacked[stacked.isfinite()]
    return Mean(finite.mean().item(), len(stacked) - len(finite), len(stacked))
