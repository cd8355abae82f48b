"""State of the current epoch, from which its record is computed; saved so that a training run can resume within an epoch."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdarts.protocols import DivergedError, Part

log = logging.getLogger("fastdarts")


class Mean(NamedTuple):
    """Mean of the finite losses (None if there are none); `of` counts all losses, `bad` the non-finite ones."""

    value: float | None
    bad: int
    of: int


@dataclass
class Epoch:
    """Losses and timings of the current epoch's steps; losses stay on the device until `means` reads them.

    losses   lists of scalars by name; the first gets one in each step, the others in some
    images   passed forward and backward
    seconds  of the steps, `input_seconds` of them waiting for batches
    """

    losses: dict[str, list[Tensor]]
    images: int = 0
    seconds: float = 0.0
    input_seconds: float = 0.0

    @classmethod
    def of(cls, *names: str) -> "Epoch":
        """Return the beginning of an epoch."""
        return cls({name: [] for name in names})

    @property
    def steps(self) -> int:
        """Return the number of finished steps."""
        return len(next(iter(self.losses.values())))

    @property
    def passes(self) -> int:
        """Return the number of forward and backward passes of a batch."""
        return sum(map(len, self.losses.values()))

    def means(self) -> list[Mean]:
        """Return the mean of each list of losses; synchronises with the device."""
        return [_mean(losses) for losses in self.losses.values()]

    def state_dict(self) -> dict[str, Any]:
        stacked = {name: torch.stack(losses) if losses else None for name, losses in self.losses.items()}
        return stacked | {"images": self.images, "seconds": self.seconds, "input_seconds": self.input_seconds}

    def restored(self, state: dict[str, Any], device: torch.device) -> "Epoch":
        """Return the epoch of a state_dict, with losses of the same names on `device`."""
        losses = {name: [] if state[name] is None else list(state[name].to(device)) for name in self.losses}
        return Epoch(losses, state["images"], state["seconds"], state["input_seconds"])

    def check(
        self, record: dict[str, Any], parts: Sequence[Part], skipped: Sequence[int], *, seeking: bool, message: bool
    ) -> None:
        """Raise DivergedError if the epoch failed; log and record its skipped updates and non-finite losses.

        An epoch fails if half of its losses are not finite, or if all updates of a part were skipped.

        record   record of the epoch: gets "not_finite" and "skipped", counts by part, where any are not 0
        parts    parts of the trainable, one for each list of losses
        skipped  updates skipped in this epoch, by part
        seeking  updates are still skipped to find a loss scale
        message  log; False on all ranks but one
        """
        epoch, means = f"epoch {record['epoch']}", self.means()
        if any(mean.bad and 2 * mean.bad >= mean.of for mean in means):
            losses = " and ".join(f"{m.bad} of {m.of} {part.loss}" for m, part in zip(means, parts, strict=True) if m.of)
            raise DivergedError(f"{epoch}: the losses are not finite ({losses}); try a smaller learning_rate")
        if any(mean.bad for mean in means):
            record["not_finite"] = [mean.bad for mean in means]
        if not any(skipped):
            return
        record["skipped"] = list(skipped)
        each = zip(skipped, means, parts, strict=True)
        counts = " and ".join(f"{n} of {mean.of} updates of {part.name}" for n, mean, part in each if n)
        if not seeking and any(n == mean.of for n, mean in zip(skipped, means, strict=True) if mean.of):
            raise DivergedError(f"{epoch}: {counts} had non-finite gradients; try a smaller learning_rate")
        if message:
            log.warning(f"{epoch}: {counts} were skipped because of non-finite gradients")


def _mean(losses: list[Tensor]) -> Mean:
    if not losses:
        return Mean(None, 0, 0)
    stacked = torch.stack(losses)
    finite = stacked[stacked.isfinite()]
    return Mean(finite.mean().item(), len(stacked) - len(finite), len(stacked))
