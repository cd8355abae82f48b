"""Monitor of a run: log lines, records in the run folder, status, TensorBoard, profile."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from math import isfinite
from types import TracebackType
from typing import Any, Protocol, Self

from fastdarts.engine.profile import Profiler, ProfileRange
from fastdarts.engine.progress import Progress, duration
from fastdarts.engine.reporter import Reporter
from fastdarts.engine.run_folder import RunFolder
from fastdarts.engine.status import Status
from fastdarts.engine.tensorboard import TensorBoardLogger
from fastdarts.protocols import StepReport, Trainable

TIMING = ("seconds", "input_seconds", "images_per_s")  # keys of an epoch's record that differ between runs of one seed
log = logging.getLogger("fastdarts")


class MonitorOptions(Protocol):
    """Settings read by the monitor."""

    @property
    def tensorboard(self) -> bool: ...
    @property
    def profile(self) -> str | None: ...


class RunMonitor:
    """Context manager that monitors one run, from its start or continuation to its end.

    Call `step` after each step, `line` after steps with a log line, `epoch` after each epoch. Exit writes the final status:
    finished, or stopped with the reason.
    """

    def __init__(self, trainable: Trainable, folder: RunFolder, settings: MonitorOptions, reporter: Reporter) -> None:
        self.trainable, self.folder, self.reporter = trainable, folder, reporter
        self.parts, self.epochs = trainable.parts, trainable.total.epochs
        self.loss = folder.last_loss(f"{self.parts[0].loss}_loss")  # from the last epoch of a continued run
        self.status = Status(folder["status"])
        self.tensorboard = self.profiler = None
        done = trainable.done
        with ExitStack() as opened:
            if settings.tensorboard:
                self.tensorboard = TensorBoardLogger(folder.path, done.steps)
                opened.callback(self.tensorboard.close)
            if settings.profile is not None:
                self.profiler = Profiler(ProfileRange.parse(settings.profile), folder.path, trainable.device, done.steps)
                opened.callback(self.profiler.close)
            self._opened = opened.pop_all()
        self.status.running(self._where())

    def _where(self) -> str:
        """Return the last finished step and its epoch."""
        done, total = self.trainable.done, self.trainable.total
        inside = done.steps > done.epochs * (total.steps // total.epochs)
        return f"epoch {done.epochs + inside}/{total.epochs}  step {done.steps}/{total.steps}"

    def step(self, report: StepReport) -> None:
        """Record a step."""
        if self.profiler is not None:
            self.profiler.after_step(report.step)

    def line(self, report: StepReport, progress: Progress) -> None:
        """Log the line of a step. Synchronises with the device."""
        pairs = zip(self.parts, report.losses, strict=True)
        losses = {part.loss: None if loss is None else loss.item() for part, loss in pairs}
        pace = progress.line(report, losses)
        self.status.running(
            f"epoch {report.epoch}/{self.epochs}  step {report.step}/{report.steps}  loss {losses[self.parts[0].loss]:.4f}  "
            f"images/s {pace.images_per_s:.1f}  left {duration(pace.seconds_left)}"
        )
        if self.tensorboard is not None:
            scalars = {f"loss/{name}": loss for name, loss in losses.items()}
            self.tensorboard.write(report.step, scalars | {"speed/images_per_s": pace.images_per_s})
        if any(skipped := report.skipped.tolist()):
            message = " and ".join(f"{n} of {part.name}" for n, part in zip(skipped, self.parts, strict=True) if n)
            log.warning(f"updates skipped so far in this epoch because of non-finite gradients: {message}")
        finite = {f"{name}_loss": v if v is not None and isfinite(v) else None for name, v in losses.items()}
        self.folder.append("metrics.jsonl", {"kind": "step", "epoch": report.epoch, "step": report.step} | finite)

    def epoch(self, record: dict[str, Any]) -> None:
        """Log an epoch and pass it to the reporter; removes the times from record, which comes from Trainable.epochs."""
        timing = {name: record.pop(name) for name in TIMING}
        if (stages := self.reporter.stage_seconds()) is not None:
            timing["stages"] = {"input": timing["input_seconds"]} | stages
        self.loss = record[f"{self.parts[0].loss}_loss"]
        self.reporter.extend(record)
        self.folder.append("metrics.jsonl", {"kind": "epoch"} | record)
        self.folder.append("timing.jsonl", {"epoch": record["epoch"]} | timing)
        if self.tensorboard is not None:
            self.tensorboard.write(record["step"], of_epoch(record, timing) | self.reporter.scalars(record))
            self.tensorboard.flush()
        figures = "  ".join(f"valid {name} {value:.4f}" for name, value in (record["valid"] or {}).items())
        loss, waiting = self.parts[0].loss, timing["input_seconds"] / timing["seconds"]
        log.info(
            f"epoch {record['epoch']}/{self.epochs} done in {duration(timing['seconds'])}, {waiting:.1%} of it waiting for "
            f"input  {timing['images_per_s']:.1f} images/s  {loss} {record[f'{loss}_loss']:.4f}  {figures}"
        )
        self.reporter.epoch(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._opened.close()
        if error is None:
            loss = "" if self.loss is None else f"  loss {self.loss:.4f}"
            end = "".join(f"  {text}" for text in [self.reporter.ending()] if text)
            self.status.finished(f"{self._where()}{loss}{end}")
        else:
            try:
                self.status.stopped(str(error) or type(error).__name__, self._where())
            except OSError as also:  # the disk that stopped the run; report the original error
                log.info(f"no final status: {also}")


def of_epoch(record: Mapping[str, Any], timing: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the scalars common to all epochs, by TensorBoard name; timing: as in timing.jsonl."""
    scalars = {"rate/weights": record["lr"]}
    scalars |= {f"epoch/{name}": value for name, value in record.items() if name.endswith("_loss")}
    scalars |= {f"valid/{name}": value for name, value in (record["valid"] or {}).items()}
    scalars["speed/waiting_for_input"] = timing["input_seconds"] / timing["seconds"]
    return scalars | {f"seconds/{stage}": seconds for stage, seconds in timing.get("stages", {}).items()}
