"""Detect steps with a non-finite loss or gradient, and the images of their batches."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdarts.protocols import Part, StepReport
from fastdarts.quoting import quoted

NAMED = 4  # images listed for a bad batch
ROOM = 1024  # capacity in steps before a look is due


class BadStep(NamedTuple):
    """Step with a skipped update or a non-finite loss.

    what       description of the fault
    images     image numbers by name of the part
    positions  loader positions after the step
    """

    epoch: int
    step: int
    what: str
    images: Mapping[str, list[int]]
    positions: Any

    def message(self, files: Sequence[str]) -> str:
        """Return a one-sentence message; files: names by image number."""
        seen = "; ".join(f"{name}: {_shortlist(numbers, files)}" for name, numbers in self.images.items())
        return f"step {self.step} of epoch {self.epoch}: {self.what}; images of {seen}"


class _Taken(NamedTuple):
    report: StepReport
    skipped: Tensor  # copy taken after the step
    positions: Any


class RecentSteps:
    """Losses, counters and image numbers of the steps since the last look, kept on the device.

    Only `look` synchronises with the device. The steps' own tensors are kept, with a copy of their counter.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._taken: list[_Taken] = []
        self._epoch, self._before = 0, [0] * len(parts)  # epoch and skipped updates at the last look

    def note(self, report: StepReport, positions: Any) -> None:
        """Record a step; positions: current loader positions."""
        self._taken.append(_Taken(report, report.skipped.clone(), positions))

    @property
    def full(self) -> bool:
        """Return whether a look is due."""
        return len(self._taken) >= ROOM

    def forget(self, epoch: int, skipped: Sequence[int]) -> None:
        """Restart after a step of `epoch`; skipped: updates skipped so far in that epoch."""
        self._taken, self._epoch, self._before = [], epoch, list(skipped)

    def look(self, seeking: bool = False) -> list[BadStep]:
        """Return the bad steps since the last look and clear the record; synchronises with the device.

        seeking  the loss scale is still being searched: only non-finite losses count
        """
        if not self._taken:
            return []
        taken, parts = self._taken, self.parts
        counts = torch.stack([t.skipped for t in taken]).tolist()
        losses = iter(torch.stack([loss for t in taken for loss in t.report.losses if loss is not None]).tolist())
        bad = []
        epoch, before = self._epoch, self._before
        for t, count in zip(taken, counts, strict=True):
            if t.report.epoch != epoch:
                epoch, before = t.report.epoch, [0] * len(parts)
            values = [0.0 if loss is None else next(losses) for loss in t.report.losses]
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
    """Merge the same bad steps found by several ranks: the images of all ranks, in batch order."""
    return [
        first._replace(images={name: _dealt([bad.images[name] for bad in (first, *others)]) for name in first.images})
        for first, *others in zip(*found, strict=True)
    ]


def _dealt(shares: Sequence[list[int]]) -> list[int]:
    return [number for row in zip(*shares, strict=True) for number in row]


def _shortlist(numbers: list[int], files: Sequence[str]) -> str:
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return ", ".join(quoted(files[n]) for n in numbers[:NAMED]) + more
