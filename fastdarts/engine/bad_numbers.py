"""Numbers that went bad: which steps had a loss or a gradient that is not finite, and on which images."""

from collections.abc import Sequence
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdarts.quoting import quoted
from fastdarts.search import PARTS, StepReport

NAMED = 4  # images of a bad batch that are named
ROOM = 1024  # steps that are kept before they must be looked at


class BadStep(NamedTuple):
    """A step whose update was skipped or whose loss is not finite.

    what       that was, in words
    images     numbers of the images that the weights saw, and of those that alpha saw
    positions  of the loaders after it
    """

    epoch: int
    step: int
    what: str
    images: tuple[list[int], list[int]]
    positions: Any

    def told(self, files: Sequence[str]) -> str:
        """One sentence; files: names by an image's number."""
        seen = "; ".join(f"{name}: {_few(numbers, files)}" for name, numbers in zip(PARTS, self.images, strict=True) if numbers)
        return f"step {self.step} of epoch {self.epoch}: {self.what}; images of {seen}"


class _Taken(NamedTuple):
    report: StepReport
    skipped: Tensor  # as it was after the step
    positions: Any


class RecentSteps:
    """The steps since the last look: losses, counters and image numbers, on the device until somebody looks.

    Nothing waits for the device before that: what is kept are the tensors that the steps left there anyway, and a copy of
    their counter.
    """

    def __init__(self) -> None:
        self._taken: list[_Taken] = []
        self._before = (0, [0, 0])  # epoch and its skipped updates at the last look

    def note(self, report: StepReport, positions: Any) -> None:
        """After a step; positions: of the loaders now."""
        self._taken.append(_Taken(report, report.skipped.clone(), positions))

    @property
    def full(self) -> bool:
        """Whether it is time to look."""
        return len(self._taken) >= ROOM

    def forget(self, epoch: int = 0, skipped: Sequence[int] = (0, 0)) -> None:
        """Begin anew after a step of `epoch` in which so many updates have been skipped so far."""
        self._taken, self._before = [], (epoch, list(skipped))

    def look(self, seeking: bool = False) -> list[BadStep]:
        """The bad ones of the steps since the last look, which are then forgotten; waits for the device.

        seeking  updates are skipped to find a loss scale: only losses that are not finite count
        """
        if not self._taken:
            return []
        taken, nothing = self._taken, torch.zeros_like(self._taken[0].report.train_loss)
        counts = torch.stack([t.skipped for t in taken]).tolist()
        losses = [[t.report.train_loss, nothing if t.report.val_loss is None else t.report.val_loss] for t in taken]
        values = torch.stack([loss for pair in losses for loss in pair]).view(-1, 2).tolist()
        bad = []
        epoch, before = self._before
        for t, count, value in zip(taken, counts, values, strict=True):
            if t.report.epoch != epoch:
                epoch, before = t.report.epoch, [0, 0]
            lost = [] if seeking else [what for what, now, then in zip(PARTS, count, before, strict=True) if now > then]
            before = count
            wrong = [f"the loss of {what} is {v}" for what, v in zip(PARTS, value, strict=True) if not isfinite(v)]
            wrong += [f"the update of {what} was skipped" for what in lost]
            if wrong:
                bad.append(_bad(t, ", ".join(wrong)))
        self.forget(epoch, before)
        return bad


def over_ranks(found: Sequence[list[BadStep]]) -> list[BadStep]:
    """What each of several ranks has found, which are the same steps, as one: with the images of all, in the batch's order."""
    return [
        first._replace(images=tuple(map(_dealt, zip(*(b.images for b in (first, *others)), strict=True))))
        for first, *others in zip(*found, strict=True)
    ]


def _dealt(shares: Sequence[list[int]]) -> list[int]:
    return [number for row in zip(*shares, strict=True) for number in row]


def _bad(taken: _Taken, what: str) -> BadStep:
    report = taken.report
    images = tuple([] if index is None else index.tolist() for index in (report.train_index, report.val_index))
    return BadStep(report.epoch, report.step, what, images, taken.positions)


def _few(numbers: list[int], files: Sequence[str]) -> str:
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return ", ".join(quoted(files[n]) for n in numbers[:NAMED]) + more
