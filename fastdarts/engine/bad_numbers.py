"""Numbers that went bad: which steps had a loss or a gradient that is not finite, and on which images."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdarts.protocols import Part, StepReport
from fastdarts.quoting import quoted

NAMED = 4  # images of a bad batch that are named
ROOM = 1024  # steps that are kept before they must be looked at


class BadStep(NamedTuple):
    """A step whose update was skipped or whose loss is not finite.

    what       that was, in words
    images     numbers of the images that each part saw, by its name
    positions  of the loaders after it
    """

    epoch: int
    step: int
    what: str
    images: Mapping[str, list[int]]
    positions: Any

    def told(self, files: Sequence[str]) -> str:
        """One sentence; files: names by an image's number."""
        seen = "; ".join(f"{name}: {_few(numbers, files)}" for name, numbers in self.images.items())
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

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._taken: list[_Taken] = []
        self._epoch, self._before = 0, [0] * len(parts)  # of the last look, and its skipped updates

    def note(self, report: StepReport, positions: Any) -> None:
        """After a step; positions: of the loaders now."""
        self._taken.append(_Taken(report, report.skipped.clone(), positions))

    @property
    def full(self) -> bool:
        """Whether it is time to look."""
        return len(self._taken) >= ROOM

    def forget(self, epoch: int, skipped: Sequence[int]) -> None:
        """Begin anew after a step of `epoch` in which so many updates have been skipped so far."""
        self._taken, self._epoch, self._before = [], epoch, list(skipped)

    def look(self, seeking: bool = False) -> list[BadStep]:
        """The bad ones of the steps since the last look, which are then forgotten; waits for the device.

        seeking  updates are skipped to find a loss scale: only losses that are not finite count
        """
        if not self._taken:
            return []
        taken, parts = self._taken, self.parts
        counts = torch.stack([t.skipped for t in taken]).tolist()
        given = iter(torch.stack([loss for t in taken for loss in t.report.losses if loss is not None]).tolist())
        bad = []
        epoch, before = self._epoch, self._before
        for t, count in zip(taken, counts, strict=True):
            if t.report.epoch != epoch:
                epoch, before = t.report.epoch, [0] * len(parts)
            values = [0.0 if loss is None else next(given) for loss in t.report.losses]
            wrong = [f"the loss of {part.name} is {v}" for part, v in zip(parts, values, strict=True) if not isfinite(v)]
            if not seeking:
                counters = zip(parts, count, before, strict=True)
                wrong += [f"the update of {part.name} was skipped" for part, now, then in counters if now > then]
            before = count
            if wrong:
                bad.append(self._bad(t, ", ".join(wrong)))
        self.forget(epoch, before)
        return bad

    def _bad(self, taken: _Taken, what: str) -> BadStep:
        report = taken.report
        seen = zip(self.parts, report.index, strict=True)
        images = {part.name: index.tolist() for part, index in seen if index is not None}
        return BadStep(report.epoch, report.step, what, images, taken.positions)


def over_ranks(found: Sequence[list[BadStep]]) -> list[BadStep]:
    """What each of several ranks has found, which are the same steps, as one: with the images of all, in the batch's order."""
    return [
        first._replace(images={name: _dealt([bad.images[name] for bad in (first, *others)]) for name in first.images})
        for first, *others in zip(*found, strict=True)
    ]


def _dealt(shares: Sequence[list[int]]) -> list[int]:
    return [number for row in zip(*shares, strict=True) for number in row]


def _few(numbers: list[int], files: Sequence[str]) -> str:
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return ", ".join(quoted(files[n]) for n in numbers[:NAMED]) + more
