"""What a run says while it goes on."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, perf_counter
from typing import NamedTuple, TextIO

from fastdarts.search import StepReport

SECONDS = 10.0  # between two lines about one thing
log = logging.getLogger("fastdarts")


@contextmanager
def log_to(target: TextIO | Path) -> Iterator[None]:
    """Inside, the package's log goes to a stream, or to the end of a file with the time of day before each line."""
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
    """A function of (done, total) that logs both every SECONDS at most."""
    last = monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if monotonic() - last > SECONDS:
            last = monotonic()
            log.info(f"{what}: {done} of {total}")

    return progress


class Pace(NamedTuple):
    """How fast a search goes."""

    images_per_s: float  # since the last line
    seconds_left: float


class Progress:
    """Logs a line every `log_every` steps: epoch, step, losses, images/s since the last line, time left.

    images  that the whole search will pass forward and backward, from the first step
    done    images passed before, when a run is continued
    """

    def __init__(self, log_every: int, epochs: int, images: int, done: int = 0) -> None:
        self.log_every, self.epochs, self.images, self.done = log_every, epochs, images, done
        self.started = perf_counter()
        self.since = 0  # images since the last line

    def due(self, report: StepReport) -> bool:
        """Whether this step gets a line; reading a loss waits for the device, so it is done for these alone."""
        self.done += report.images
        self.since += report.images
        return report.step % self.log_every == 0

    def line(self, report: StepReport, train_loss: float, val_loss: float | None) -> Pace:
        """Log the line."""
        now = perf_counter()
        rate = self.since / (now - self.started)
        pace = Pace(rate, (self.images - self.done) / rate)
        alpha = "not moving yet" if val_loss is None else f"{val_loss:.4f}"
        log.info(
            f"epoch {report.epoch}/{self.epochs}  step {report.step}/{report.steps}  train {train_loss:.4f}  "
            f"alpha {alpha}  {rate:.1f} images/s  {duration(pace.seconds_left)} left"
        )
        self.started, self.since = now, 0
        return pace


def duration(seconds: float) -> str:
    """H:MM:SS, or M:SS below an hour."""
    minutes, s = divmod(round(max(seconds, 0.0)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
