"""A window of steps under torch.profiler, as a trace that chrome://tracing and Perfetto read."""

import logging
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from fastdarts.engine.files import named_plainly

log = logging.getLogger("fastdarts")


class ProfileRange(NamedTuple):
    """Steps `first` to `last` of the whole run, both included, counted from 1."""

    first: int
    last: int

    @staticmethod
    def parse(text: str) -> "ProfileRange":
        """From A:B. Raises ValueError."""
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if not found:
            raise ValueError("give the first and the last step, as in 10:12")
        steps = ProfileRange(*map(int, found.groups()))
        if not 1 <= steps.first <= steps.last:
            raise ValueError("the first step must be at least 1 and not after the last")
        return steps


class Profiler:
    """Traces a window of steps into `folder`/trace-A-B.json.

    done  steps that the run has behind it: a window that begins among them is not traced, which is said
    """

    def __init__(self, steps: ProfileRange, folder: Path, device: torch.device, done: int = 0) -> None:
        self.steps, self.device = steps, device
        self.path = folder / f"trace-{steps.first}-{steps.last}.json"
        self._profile: profile | None = None
        if done >= steps.first:
            log.info(f"steps {steps.first} to {steps.last} are not traced: the run has {done} steps behind it")
        self.after_step(done)

    def after_step(self, step: int) -> None:
        """To be called when `step` is done: begins before the window's first step, writes after its last."""
        if step == self.steps.first - 1:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
            self._profile = profile(activities=activities)
            self._profile.start()
        elif step == self.steps.last and self._profile is not None:
            with named_plainly(self.path.parent) as folder:
                self._stop().export_chrome_trace(str(folder / self.path.name))
            log.info(f"steps {self.steps.first} to {self.steps.last} are traced in {self.path}")

    def close(self) -> None:
        """End a window that the run did not come to the end of; nothing is written."""
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
