"""How the runs of a sweep are started: as processes of this machine one after the other, or as jobs of submitit.

A job begins with an import of this module, which therefore imports nothing big.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, Protocol

TIMEOUTS = 100  # times that a job is queued again after its time was up; submitit's local executor stops at 6
LEFT = 75  # exit status of a run that was asked to stop: engine.signals' AGAIN
PAUSE, SLURM_PAUSE = 0.1, 5.0  # seconds between two looks at what runs
REPEAT = 3.0  # seconds after which a local job is asked to stop again: submitit loses signals that come while it starts one


class NoExecutor(RuntimeError):
    """What is asked for cannot start jobs here; the message says what to do."""


class Job(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """Its exit status, negative the signal that killed it; None while it runs."""

    def stop(self, number: int) -> None:
        """Pass on a signal: it takes a checkpoint and ends."""


class Executor(Protocol):
    """Starts runs.

    jobs   how many may run at a time
    pause  seconds between two looks
    """

    jobs: int
    pause: float

    def start(self, name: str, command: Sequence[str], log: Path) -> Job:
        """Start `command`; what it prints is added to the file `log`."""


def process(command: Sequence[str], log: Path, gpu: str | None = None) -> "subprocess.Popen[bytes]":
    """Start a run in a session of its own, so that a terminal's signals reach it once, through the sweep.

    gpu  the only one that it sees, as CUDA_VISIBLE_DEVICES names it
    """
    environment = None if gpu is None else os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
    with open(log, "ab") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, env=environment
        )


class Process:
    """A run as a process of this machine."""

    def __init__(self, started: "subprocess.Popen[bytes]") -> None:
        self.started = started

    def poll(self) -> int | None:
        return self.started.poll()

    def stop(self, number: int) -> None:
        self.started.send_signal(number)


class Here:
    """One run after the other, on this machine."""

    jobs, pause = 1, PAUSE

    def start(self, name: str, command: Sequence[str], log: Path) -> Job:
        return Process(process(command, log))


class Task:
    """What a job of submitit calls: runs the command and returns its exit status.

    Shortly before its time is up the run takes a checkpoint, and the job is queued again.
    """

    def __init__(self, command: Sequence[str], log: Path, gpu: str | None = None) -> None:
        self.command, self.log, self.gpu = tuple(command), log, gpu

    def __call__(self) -> int:
        self.run = process(self.command, self.log, self.gpu)
        signal.signal(signal.SIGTERM, self._stop)
        return self.run.wait()

    def checkpoint(self) -> Any:
        """submitit's name for: end, and say what is to be run instead."""
        from submitit.helpers import DelayedSubmission

        self.run.send_signal(signal.SIGTERM)
        with suppress(ChildProcessError):  # it had ended
            os.waitid(os.P_PID, self.run.pid, os.WEXITED | os.WNOWAIT)  # this interrupts run.wait, which holds a lock
        return DelayedSubmission(Task(self.command, self.log, self.gpu))

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.run.send_signal(number)


class Submitted:
    """A run as a job of submitit."""

    def __init__(self, job: Any, local: bool, gpu: str | None) -> None:
        self.job, self.local, self.gpu = job, local, gpu
        self.asked = 0.0  # when, by the monotonic clock
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            self._status = self._ended()
        return self._status

    def _ended(self) -> int | None:
        if self.asked and not self.local:
            return LEFT  # SLURM gives it time for a checkpoint; nobody waits for that
        if not self.job.done():
            if self.asked and monotonic() - self.asked > REPEAT:
                self.stop(signal.SIGTERM)
            return None
        if self.job.exception() is not None:  # of the job, not of the run: it was killed, say
            return LEFT if self.asked else 1
        return self.job.result()

    def stop(self, number: int) -> None:
        """SIGTERM, whatever the signal: submitit passes no other one on."""
        self.asked = monotonic()
        if self.local:
            os.kill(int(self.job.job_id), signal.SIGTERM)
        else:
            self.job.cancel(check=False)


class Submitit:
    """Up to `jobs` at a time through submitit, on this machine (cluster "local") or on SLURM ("slurm").

    folder   for submitit's files
    minutes  a job's time; then it takes a checkpoint and is queued again
    slurm    sbatch's parameters by submitit's names
    gpus     of this machine, as CUDA_VISIBLE_DEVICES names them: each local job gets the one with the fewest others
    Raises NoExecutor.
    """

    def __init__(
        self, cluster: str, folder: Path, jobs: int, minutes: int, slurm: Mapping[str, Any], gpus: Sequence[str] = ()
    ) -> None:
        if find_spec("submitit") is None:
            raise NoExecutor(
                f"--executor {cluster} needs submitit: pip install 'fastdarts[sweep]' (or submitit alone), or --executor here"
            )
        import submitit

        self.jobs, self.local, self.gpus = jobs, cluster == "local", gpus
        self.pause = PAUSE if self.local else SLURM_PAUSE
        self._started: list[Submitted] = []
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=cluster, slurm_max_num_timeout=TIMEOUTS)
            self._executor.update_parameters(timeout_min=minutes, **{f"slurm_{name}": value for name, value in slurm.items()})
        except (RuntimeError, ValueError, NameError, TypeError) as error:  # no srun, or an unknown parameter
            raise NoExecutor(f"--executor {cluster}: {str(error).splitlines()[0]}") from error

    def start(self, name: str, command: Sequence[str], log: Path) -> Job:
        self._started = [job for job in self._started if job.poll() is None]
        taken = [job.gpu for job in self._started]
        gpu = min(self.gpus, key=taken.count, default=None)
        self._executor.update_parameters(name=name)
        with _interrupts_ignored():
            job = Submitted(self._executor.submit(Task(command, log, gpu)), self.local, gpu)
        self._started.append(job)
        return job


@contextmanager
def _interrupts_ignored() -> Generator[None]:
    """Processes started inside ignore a terminal's Ctrl-C, at which submitit's would kill the run; the sweep tells them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interpreter(module: str) -> list[str]:
    """The command that runs a module as this Python does."""
    return [sys.executable, "-m", module]
