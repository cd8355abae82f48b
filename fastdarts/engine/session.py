"""Training session: epochs with log, records and checkpoints, signal handling and checks for non-finite numbers."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from time import perf_counter
from typing import Any, Literal, Protocol

from fastdarts.batch import Batch
from fastdarts.engine.bad_numbers import BadStep, RecentSteps, over_ranks
from fastdarts.engine.checkpoints import steps_of
from fastdarts.engine.distributed import World
from fastdarts.engine.monitor import MonitorOptions, RunMonitor
from fastdarts.engine.progress import Progress
from fastdarts.engine.reporter import Reporter
from fastdarts.engine.run_folder import RunFolder, RunFolderError
from fastdarts.engine.saver import Saver
from fastdarts.engine.signals import InterruptibleLoader, SignalHandler, Stopped
from fastdarts.protocols import Batches, DivergedError, Hooks, InputStopped, StepReport, Trainable

REPORT_SECONDS = 20.0  # minimum age of a report before an epoch redraws it
SHOWN = 3  # bad steps listed at a time
REWINDS = 3  # to one checkpoint before the run fails
log = logging.getLogger("fastdarts")


class SessionOptions(MonitorOptions, Protocol):
    """Settings read by a Session; documented with the command's settings."""

    @property
    def checkpoint_minutes(self) -> float: ...
    @property
    def keep_checkpoints(self) -> int: ...
    @property
    def on_bad(self) -> Literal["skip", "stop", "rewind"]: ...
    @property
    def check_ranks_every(self) -> int: ...
    @property
    def log_every(self) -> int: ...


def valid_loss(record: Mapping[str, Any]) -> float | None:
    """Return the validation loss of an epoch's record, None in one without."""
    return (record["valid"] or {}).get("loss")


class Rewind(Exception):
    """Request to continue from the last checkpoint with the batches after `bad`."""

    def __init__(self, bad: BadStep) -> None:
        super().__init__(bad)
        self.bad = bad


class Session:
    """Run the remaining training of `trainable` and keep `folder` up to date.

    A killed run loses the steps since its last checkpoint; a run stopped by a signal loses none.

    reporter  additional records and reports of this kind of run
    files     names by image number, for messages on a bad batch
    signals   signal handler; None: signals do not stop the run
    world     the ranks: each has a Session, only rank 0's accesses the folder and reports
    criterion  score of an epoch by its record, None without one: the best checkpoint has the lowest
    """

    def __init__(
        self,
        trainable: Trainable,
        folder: RunFolder,
        settings: SessionOptions,
        reporter: Reporter,
        *,
        files: Sequence[str],
        signals: SignalHandler | None = None,
        world: World | None = None,
        criterion: Callable[[Mapping[str, Any]], float | None] = valid_loss,
    ) -> None:
        self.criterion = criterion
        self.trainable, self.folder, self.settings, self.reporter = trainable, folder, settings, reporter
        self.files, self.signals, self.world = files, signals or SignalHandler(), world or World()
        self.monitor: RunMonitor | None = None  # on rank 0, during training
        self.recent = RecentSteps(trainable.parts)
        self.saver = Saver(trainable, folder, minutes=settings.checkpoint_minutes, keep=settings.keep_checkpoints)
        self.rewound: Counter[int] = Counter()  # rewinds by step of the checkpoint

    def run(self) -> None:
        """Continue from the folder's checkpoint to the last epoch.

        Raises Stopped after a signal and a checkpoint, RunFolderError for unusable checkpoints, DivergedError for non-finite
        numbers, keeping the checkpoint before them, OSError if a checkpoint cannot be written, and InputStopped, RankLost and
        RanksDisagree.
        """
        state = self.world.on_rank_zero(self.folder.restore)
        self.world.on_all_ranks(lambda: self._load(state))
        if state is not None:
            done = self.trainable.done
            inside = f" and {part} steps" if (part := done.steps - done.epochs * self._steps_an_epoch) else ""
            log.info(f"continuing {self.folder.path} after epoch {done.epochs} of {self.trainable.total.epochs}{inside}")
        try:
            with self.signals.deferred(), ExitStack() as watched:
                with self.signals.deferred(shared=not self.world.is_single):
                    if state is None and self.settings.on_bad == "rewind":
                        self.saver.save(self.world)  # initial state, as a target for rewinds
                    if self.world.is_main:
                        self.monitor = watched.enter_context(
                            RunMonitor(self.trainable, self.folder, self.settings, self.reporter)
                        )
                    self._compare("before the first step")
                    self._train()
                self._conclude()
                self.saver.writer.wait()  # a run is finished only once its last checkpoint is written
        except Stopped:
            good = not self._bad_steps() or self.settings.on_bad == "skip"
            if good and self.saver.saved < self.trainable.done.steps:
                self.saver.save(self.world)
            self.saver.writer.wait()
            self.world.wait()  # or torchrun would end rank 0 while it writes, because the others have left
            log.info(f"stopped after step {self.trainable.done.steps}; last checkpoint: step {self.saver.saved}")
            raise
        finally:
            self.saver.writer.close()
        if state is not None and steps_of(state) == self.trainable.done.steps:
            log.info(f"nothing left to do in {self.folder.path}")
        if self.world.is_main:
            self.reporter.finished()

    @property
    def _steps_an_epoch(self) -> int:
        return self.trainable.total.steps // self.trainable.total.epochs

    def _train(self) -> None:
        """Train the remaining epochs."""
        hooks = Hooks(self._on_step, self.signals.at_once, self._batches)
        published = perf_counter()
        while True:
            try:
                for record in self.trainable.epochs(hooks):
                    self._record(record)
                    if self.world.is_main and perf_counter() - published > REPORT_SECONDS:
                        with self.signals.at_once():
                            self.reporter.publish()
                        published = perf_counter()
                return
            except Rewind as rewind:
                self._rewind(rewind.bad)
            except InputStopped:  # a signal to all processes of a job may also end the decoding ones
                if self.world.is_single:
                    self.signals.check()
                raise

    def _conclude(self) -> None:
        """Let the other ranks leave; only this one continues."""
        if self.world.is_main:
            self.world = World()
            self.reporter.conclude(self.signals.at_once)

    def _load(self, state: dict[str, Any] | None) -> None:
        """Restore the trainable and everything associated with it."""
        if state is not None:
            self.saver.load(state, self.world.rank)
        done = self.trainable.done
        self.recent.forget(done.epochs + 1, self.trainable.skipped.tolist())
        self.progress = Progress(self.settings.log_every, self.trainable.total, done)

    def _on_step(self, report: StepReport) -> None:
        self.saver.writer.check()
        self.recent.note(report, self.trainable.positions)
        due = self.progress.due(report)
        if due and self.monitor is not None:
            self.monitor.line(report, self.progress)
        signal, save = self.world.agree(self.signals.signal, self.saver.late)
        last = report.step % self._steps_an_epoch == 0
        if due or save or signal or last or self.recent.full:
            self._look()
        every = self.settings.check_ranks_every
        if every and report.step % every == 0:
            self._compare(f"after step {report.step}")
        if self.monitor is not None:
            self.monitor.step(report)
        if signal:
            raise self.signals.agreed(signal)
        if save:
            self.saver.save(self.world)

    def _batches(self, batches: Batches) -> Iterable[Batch]:
        """Return an evaluation's batches. Ranks agree on signals between them; a single process may be interrupted anywhere."""
        if self.world.is_single:
            return batches
        return InterruptibleLoader(batches, self._ask, lambda own: max(self.world.gather(own)))

    def _ask(self) -> None:
        """Raise Stopped on all ranks if any has received a signal."""
        signal, _ = self.world.agree(self.signals.signal, False)
        if signal:
            raise self.signals.agreed(signal)

    def _compare(self, when: str) -> None:
        """Raise RanksDisagree unless all ranks hold the same parameters."""
        if self.settings.check_ranks_every and not self.world.is_single:
            self.world.check_equal(self.trainable.named_tensors(), when)

    def _record(self, record: dict[str, Any]) -> None:
        """Log the epoch, then save it. The checkpoint comes last, so that it is never ahead of the files."""
        if self.monitor is not None:
            self.monitor.epoch(record)
        self.saver.save(self.world, self.criterion(record))

    def _bad_steps(self) -> list[BadStep]:
        """Return and log the bad steps since the last look. Synchronises with the device."""
        bad = self.recent.look(self.trainable.seeking())
        if bad:
            bad = over_ranks(self.world.gather(bad))
        if bad and self.world.is_main:
            for step in bad[-SHOWN:]:
                log.warning(step.message(self.files))
            more = f"{len(bad)} such steps since the last check" if len(bad) > 1 else ""
            saved = self.saver.saved
            kept = f"last checkpoint: step {saved}" if saved >= 0 else "no checkpoint yet"
            log.warning("; ".join(filter(None, (more, self.reporter.state(), kept))))
        return bad

    def _look(self) -> None:
        """Log bad steps and apply --on_bad."""
        bad = self._bad_steps()
        if bad and self.settings.on_bad == "stop":
            raise DivergedError(f"{bad[0].message(self.files)}; --on_bad skip or rewind would continue")
        if bad and self.settings.on_bad == "rewind":
            raise Rewind(bad[-1])

    def _rewind(self, bad: BadStep) -> None:
        """Restore the last checkpoint and continue with the batches after the bad step."""
        self.saver.writer.wait()
        state = self.world.on_rank_zero(self.folder.restore, begun=True)
        if state is None:
            raise RunFolderError(f"{self.folder.path} has lost its checkpoints, cannot rewind")
        step = steps_of(state)
        self.rewound[step] += 1
        if self.rewound[step] > REWINDS:
            raise DivergedError(f"{bad.message(self.files)}; rewound to step {step} {REWINDS} times with the same result")
        self._load(state)
        self.trainable.move_loaders(bad.positions)
        if self.world.is_main:
            log.warning(f"rewound to step {step}, continuing with the images after those of step {bad.step}")
