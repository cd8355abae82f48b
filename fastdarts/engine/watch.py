"""Everything a run says of itself to somebody who watches it: status file, stages of a step, TensorBoard, profiler."""

import logging
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastdarts.config import RunSettings
from fastdarts.engine.cuda_graph import CapturedBilevel
from fastdarts.engine.profile import Profiler, Window
from fastdarts.engine.progress import Pace, duration
from fastdarts.engine.stages import Stages
from fastdarts.engine.status import Status
from fastdarts.engine.tensorboard import Board
from fastdarts.search import Search, Step, StepReport

log = logging.getLogger("fastdarts")


class Watch:
    """Watches one run, from where it begins or continues to its end: a context manager.

    Inside, `step` is called after each step, `logged` with those that get a line, `epoch` after each epoch. Leaving writes
    the final status: finished, or stopped and why.

    loss  mean training loss of the last epoch before, when a run is continued
    """

    def __init__(self, search: Search, folder: Path, settings: RunSettings, loss: float | None = None) -> None:
        self.search, self.epochs, self.loss = search, settings.epochs, loss
        self.status = Status(folder / "status")
        done = self._done()
        self.stages = Stages(search.take_step) if isinstance(search.take_step, CapturedBilevel) else None
        self.board = self.profiler = None
        with ExitStack() as opened:
            if settings.tensorboard:
                self.board = Board(folder, search.supernet.space, done)
                opened.callback(self.board.close)
            if settings.profile is not None:
                self.profiler = Profiler(Window.parse(settings.profile), folder, search.device, done)
                opened.callback(self.profiler.close)
            self._opened = opened.pop_all()
        self.status.running(self._where())

    def _done(self) -> int:
        """Finished steps of the whole search."""
        return self.search.epoch * len(self.search.train_loader) + self.search.part.steps

    def _where(self) -> str:
        """The last step that was finished, and the epoch that it belongs to."""
        epoch = self.search.epoch + bool(self.search.part.steps)
        return f"epoch {epoch}/{self.epochs}  step {self._done()}/{self.epochs * len(self.search.train_loader)}"

    def follow(self, steps: Step) -> None:
        """Steps are taken by another one from now on."""
        if self.stages is not None and isinstance(steps, CapturedBilevel):
            self.stages.follow(steps)

    def step(self, report: StepReport) -> None:
        """After each step."""
        if self.profiler is not None:
            self.profiler.after_step(report.step)

    def logged(self, report: StepReport, train_loss: float, alpha_loss: float | None, pace: Pace, epochs: int) -> None:
        """After a step that got a line in the log."""
        self.status.running(
            f"epoch {report.epoch}/{epochs}  step {report.step}/{report.steps}  loss {train_loss:.4f}  "
            f"images/s {pace.images_per_s:.1f}  left {duration(pace.seconds_left)}"
        )
        if self.board is not None:
            self.board.step(report.step, train_loss, alpha_loss, pace.images_per_s)

    def timing(self, timing: dict[str, Any]) -> dict[str, Any]:
        """An epoch's timing with the seconds of its stages; input is that of waiting for it."""
        if self.stages is None:
            return timing
        return timing | {"stages": {"input": timing["input_seconds"]} | self.stages.drain()}

    def epoch(self, record: dict[str, Any], timing: dict[str, Any]) -> None:
        """After an epoch: its record, and what `timing` gave."""
        self.loss = record["train_loss"]
        if self.board is not None:
            self.board.epoch(record, timing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._opened.close()
        if error is None:
            loss = "" if self.loss is None else f"  loss {self.loss:.4f}"
            early = "  early stop" if self.search.stop else ""
            self.status.finished(f"{self._where()}{loss}{early}")
        else:
            try:
                self.status.stopped(str(error) or type(error).__name__, self._where())
            except OSError as also:  # the disk that stopped the run; its own error is the one to tell
                log.info(f"no final status: {also}")
