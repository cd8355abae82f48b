"""Time the stages of a step: the weights' update, alpha's update, and the optimizer in both.

On a CPU by the host's clock. On a GPU by events in the stream, without synchronisation, read at the end of an epoch; a step
replayed as CUDA graphs is timed per graph, optimizers included.
"""

from collections import defaultdict
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from fastdarts.steps.cuda_graph import CapturedBilevel

TIMED = {"weight_step": "weights", "arch_step": "alpha", "_update": "optimizer"}  # methods of a Bilevel, and their stages


class StageTimer:
    """Timer of the stages of the CapturedBilevels it follows.

    A nested stage is subtracted from its enclosing one. With several ranks, averaging over them is a stage: "reduce".
    """

    def __init__(self) -> None:
        self.on_gpu = False
        self._open: list[str] = []  # open stages, innermost last
        self._marks: list[tuple[str, str | None, Any, Any]] = []  # stage, enclosing stage, begin, end
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def follow(self, steps: CapturedBilevel) -> CapturedBilevel:
        """Time the stages of `steps` from now on; returns `steps`."""
        self.on_gpu = steps.bilevel.device.type == "cuda"
        for method, stage in TIMED.items():
            setattr(steps.bilevel, method, self.timed(stage, getattr(steps.bilevel, method)))
        if steps.bilevel.reduce is not None:
            steps.bilevel.reduce = self.timed("reduce", steps.bilevel.reduce)
        if self.on_gpu:
            take = steps._take
            steps._take = lambda part: self.timed(part, take)(part)
        return steps

    def timed(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `work` so that its calls count as `stage`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if self.on_gpu and torch.cuda.is_current_stream_capturing():
                return work(*args, **kwargs)
            around = self._open[-1] if self._open else None
            self._open.append(stage)
            begin = self._now()
            try:
                return work(*args, **kwargs)
            finally:
                self._note(stage, around, begin, self._now())
                self._open.pop()

        return run

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
