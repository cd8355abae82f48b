"""Progress lines of a run."""

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, perf_counter
from typing import NamedTuple, TextIO

from fastdarts.protocols import Extent, StepReport

SECONDS = 10.0  # between two lines on one subject
log = logging.getLogger("fastdarts")


@contextmanager
def log_to(target: TextIO | Path) -> Generator[None]:
    """Context manager: log to a stream, or append to a file with the time of day before each line."""
    if isinstance(target, Path):
        handler: logging.Handler = logging.FileHandler(target, encoding="utf-8", errors="backslashreplace")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    else:
        handler = logging.StreamHandler(target)
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        if isinstance(target, Path):
            handler.close()


def now_and_then(what: str) -> Callable[[int, int], None]:
    """Return a function of (done, total) that logs both at most every SECONDS."""
    last = monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if monotonic() - last > SECONDS:
            last = monotonic()
            log.info(f"{what}: {done} of {total}")

    return progress


class Pace(NamedTuple):
    """Speed of a training run."""

    images_per_s: float  # since the last line
    seconds_left: float


class Progress:
    """Log a line every `log_every` steps: epoch, step, losses, images/s since the last line, time left.

    total  extent of the whole training run
    done   extent already finished when a run is continued
    """

    def __init__(self, log_every: int, total: Extent, done: Extent) -> None:
        self.log_every, self.total, self.left = log_every, total, total.passes - done.passes
        self.started = perf_counter()
        self.images = self.passes = 0  # since the last line

    def due(self, report: StepReport) -> bool:
        """Return whether this step gets a line. Only such steps read a loss, which synchronises with the device."""
        passes = sum(loss is not None for loss in report.losses)
        self.images += report.images
        self.passes += passes
        self.left -= passes
        return report.step % self.log_every == 0

    def line(self, report: StepReport, losses: Mapping[str, float | None]) -> Pace:
        """Log the line; losses: by name, None for a part without updates so far."""
        now = perf_counter()
        seconds = now - self.started
        pace = Pace(self.images / seconds, self.left * seconds / self.passes)
        text = "".join(f"{name} {'not updated yet' if loss is None else f'{loss:.4f}'}  " for name, loss in losses.items())
        log.info(
            f"epoch {report.epoch}/{self.total.epochs}  step {report.step}/{report.steps}  {text}"
            f"{pace.images_per_s:.1f} images/s  {duration(pace.seconds_left)} left"
        )
        self.started, self.images, self.passes = now, 0, 0
        return pace


def duration(seconds: float) -> str:
    """Format seconds as H:MM:SS, or M:SS below an hour."""
    minutes, s = divmod(round(max(seconds, 0.0)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
