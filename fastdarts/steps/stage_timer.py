"""Time the stages of a step: each update ("weights", "alpha"), and the optimizer inside each.

On a CPU by the host's clock. On a GPU by events in the stream, without synchronisation, read at the end of an epoch; a step
replayed as CUDA graphs is timed per graph, optimizers included.
"""

from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar

import torch

from fastdarts.protocols import Updates

U = TypeVar("U", bound=Updates)


class StageTimer:
    """Timer of the stages of the steps it follows, captured or not; a step names its stages (protocols.Updates.stage).

    A nested stage is subtracted from its enclosing one. With several ranks, averaging over them is a stage: "reduce".
    """

    def __init__(self) -> None:
        self.on_gpu = False
        self._open: list[str] = []  # open stages, innermost last
        self._marks: list[tuple[str, str | None, Any, Any]] = []  # stage, enclosing stage, begin, end
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def follow(self, updates: U) -> U:
        """Time the stages of this step from now on; returns it."""
        self.on_gpu = updates.device.type == "cuda"
        updates.stage = self.stage
        if updates.reduce is not None:
            updates.reduce = self.timed("reduce", updates.reduce)
        return updates

    def timed(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `work` so that its calls count as `stage`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.stage(stage):
                return work(*args, **kwargs)

        return run

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Context manager: what runs inside counts as the stage `name`; during a capture nothing does."""
        if self.on_gpu and torch.cuda.is_current_stream_capturing():
            yield
            return
        around = self._open[-1] if self._open else None
        self._open.append(name)
        begin = self._now()
        try:
            yield
        finally:
            self._note(name, around, begin, self._now())
            self._open.pop()

    def drain(self) -> dict[str, float]:
        """Return the seconds of each stage since the last call. Waits for the device: call it after the host has waited."""
        if self._marks:
            self._marks[-1][3].synchronize()
        for stage, around, begin, end in self._marks:
            self._add(stage, around, begin.elapsed_time(end) / 1e3)
        self._marks.clear()
        seconds = {stage: max(s, 0.0) for stage, s in self._seconds.items()}
        self._seconds.clear()
        return seconds

    def _now(self) -> Any:
        if not self.on_gpu:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _note(self, stage: str, around: str | None, begin: Any, end: Any) -> None:
        if self.on_gpu:
            self._marks.append((stage, around, begin, end))
        else:
            self._add(stage, around, end - begin)

    def _add(self, stage: str, around: str | None, seconds: float) -> None:
        self._seconds[stage] += seconds
        if around is not None:
            self._seconds[around] -= seconds
