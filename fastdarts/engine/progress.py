"""What a run says while it goes on."""

import logging
import sys
from pathlib import Path
from time import perf_counter

from fastdarts.search import StepReport

log = logging.getLogger("fastdarts")


def log_to_terminal() -> None:
    """Send the package's log to standard output."""
    _add_handler(logging.StreamHandler(sys.stdout), "%(message)s")
    log.setLevel(logging.INFO)


def log_to_file(path: Path) -> None:
    """Send the package's log to the end of `path` too, with the time of day."""
    _add_handler(logging.FileHandler(path, encoding="utf-8"), "%(asctime)s %(message)s")


def _add_handler(handler: logging.Handler, form: str) -> None:
    handler.setFormatter(logging.Formatter(form, datefmt="%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)


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

    def line(self, report: StepReport, train_loss: float, val_loss: float | None) -> None:
        """Log the line."""
        now = perf_counter()
        rate = self.since / (now - self.started)
        left = duration((self.images - self.done) / rate)
        alpha = "not moving yet" if val_loss is None else f"{val_loss:.4f}"
        log.info(
            f"epoch {report.epoch}/{self.epochs}  step {report.step}/{report.steps}  train {train_loss:.4f}  "
            f"alpha {alpha}  {rate:.1f} images/s  {left} left"
        )
        self.started, self.since = now, 0


def duration(seconds: float) -> str:
    """H:MM:SS, or M:SS below an hour."""
    minutes, s = divmod(round(max(seconds, 0.0)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
