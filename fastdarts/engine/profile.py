"""Trace a range of steps with torch.profiler, for chrome://tracing and Perfetto."""

import logging
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from fastdarts.engine.files import named_plainly

log = logging.getLogger("fastdarts")


class ProfileRange(NamedTuple):
    """Steps `first` to `last` of the whole run, inclusive, counted from 1."""

    first: int
    last: int

    @staticmethod
    def parse(text: str) -> "ProfileRange":
        """Parse A:B. Raises ValueError."""
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if not found:
            raise ValueError("expected the first and last step as FIRST:LAST, for example 10:12")
        steps = ProfileRange(*map(int, found.groups()))
        if not 1 <= steps.first <= steps.last:
            raise ValueError("the first step must be at least 1 and not after the last")
        return steps


class Profiler:
    """Profiler of a range of steps, written to `folder`/trace-A-B.json.

    done  finished steps of the run: a range that begins among them is not traced, with a log line
    """

    def __init__(self, steps: ProfileRange, folder: Path, device: torch.device, done: int = 0) -> None:
        self.steps, self.device = steps, device
        self.path = folder / f"trace-{steps.first}-{steps.last}.json"
        self._profile: profile | None = None
        if done >= steps.first:
            log.info(f"steps {steps.first} to {steps.last} are not traced: the run has already done {done} steps")
        self.after_step(done)

    def after_step(self, step: int) -> None:
        """Call after `step`: starts before the first step of the range, writes after its last."""
        if step == self.steps.first - 1:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
            self._profile = profile(activities=activities)
            self._profile.start()
        elif step == self.steps.last and self._profile is not None:
            with named_plainly(self.path.parent) as folder:
                self._stop().export_chrome_trace(str(folder / self.path.name))
            log.info(f"steps {self.steps.first} to {self.steps.last} are traced in {self.path}")

    def close(self) -> None:
        """End an unfinished range; writes nothing."""
        if self._profile is not None:
            self._stop()
            log.info(f"no trace: the run ended before step {self.steps.last}")

    def _stop(self) -> profile:
        traced, self._profile = self._profile, None
        assert traced is not None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        traced.stop()
        return traced
