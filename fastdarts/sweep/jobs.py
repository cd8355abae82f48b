"""Executors of a sweep: sequential local processes, or submitit jobs.

A job imports this module first, so it has no heavy imports.
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

TIMEOUTS = 100  # requeues of a job after its time limit; submitit's local executor stops at 6
LEFT = 75  # exit status of a run stopped by a signal: engine.signals.AGAIN
PAUSE, SLURM_PAUSE = 0.1, 5.0  # seconds between polls of running jobs
REPEAT = 3.0  # seconds before a local job gets its stop signal again: submitit loses signals while it starts a job


class NoExecutor(RuntimeError):
    """The requested executor is unavailable; the message gives the remedy."""


class Job(Protocol):
    """Started run."""

    def poll(self) -> int | None:
        """Return the exit status, negative for a killing signal; None while it runs."""

    def stop(self, number: int) -> None:
        """Forward a signal: the run saves a checkpoint and exits."""


class Executor(Protocol):
    """Executor of runs.

    jobs   maximum number of concurrent runs
    pause  seconds between polls
    """

    jobs: int
    pause: float

    def start(self, name: str, command: Sequence[str], log: Path) -> Job:
        """Start `command`; its output is appended to the file `log`."""


def process(command: Sequence[str], log: Path, gpu: str | None = None) -> "subprocess.Popen[bytes]":
    """Start a run in a new session, so that a terminal's signals reach it once, through the sweep.

    gpu  the only visible GPU, in CUDA_VISIBLE_DEVICES' notation
    """
    environment = None if gpu is None else os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
    with open(log, "ab") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, env=environment
        )


class Process:
    """Run as a local process."""

    def __init__(self, started: "subprocess.Popen[bytes]") -> None:
        self.started = started

    def poll(self) -> int | None:
        return self.started.poll()

    def stop(self, number: int) -> None:
        self.started.send_signal(number)


class Here:
    """Executor of one local run at a time."""

    jobs, pause = 1, PAUSE

    def start(self, name: str, command: Sequence[str], log: Path) -> Job:
        return Process(process(command, log))


class Task:
    """Callable of a submitit job: runs the command and returns its exit status.

    Shortly before the time limit the run saves a checkpoint, and the job is requeued.
    """

    def __init__(self, command: Sequence[str], log: Path, gpu: str | None = None) -> None:
        self.command, self.log, self.gpu = tuple(command), log, gpu

    def __call__(self) -> int:
        self.run = process(self.command, self.log, self.gpu)
        signal.signal(signal.SIGTERM, self._stop)
        return self.run.wait()

    def checkpoint(self) -> Any:
        """Stop the run and return the job to requeue (submitit's protocol)."""
        from submitit.helpers import DelayedSubmission

        self.run.send_signal(signal.SIGTERM)
        with suppress(ChildProcessError):  # already ended
            os.waitid(os.P_PID, self.run.pid, os.WEXITED | os.WNOWAIT)  # interrupts run.wait, which holds a lock
        return DelayedSubmission(Task(self.command, self.log, self.gpu))

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.run.send_signal(number)


class Submitted:
    """Run as a submitit job."""

    def __init__(self, job: Any, local: bool, gpu: str | None) -> None:
        self.job, self.local, self.gpu = job, local, gpu
        self.asked = 0.0  # time of the stop request, monotonic clock
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            self._status = self._ended()
        return self._status

    def _ended(self) -> int | None:
        if self.asked and not self.local:
            return LEFT  # SLURM grants time for a checkpoint; nothing waits for it
        if not self.job.done():
            if self.asked and monotonic() - self.asked > REPEAT:
                self.stop(signal.SIGTERM)
            return None
        if self.job.exception() is not None:  # of the job, not the run: for example, it was killed
            return LEFT if self.asked else 1
        return self.job.result()

    def stop(self, number: int) -> None:
        """Send SIGTERM for any signal: submitit forwards no other."""
        self.asked = monotonic()
        if self.local:
            os.kill(int(self.job.job_id), signal.SIGTERM)
        else:
            self.job.cancel(check=False)


class Submitit:
    """Executor of up to `jobs` concurrent submitit jobs, on this machine (cluster "local") or on SLURM ("slurm").

    folder   folder of submitit's files
    minutes  time limit of a job, after which it saves a checkpoint and is requeued
    slurm    sbatch parameters by submitit's names
    gpus     local GPUs in CUDA_VISIBLE_DEVICES' notation: each local job gets the one with the fewest jobs
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
        except (RuntimeError, ValueError, NameError, TypeError) as error:  # srun is missing, or an unknown parameter
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
    """Context manager: started processes ignore Ctrl-C, on which submitit would kill the run; the sweep signals them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interpreter(module: str) -> list[str]:
    """Return the command that runs a module with this Python."""
    return [sys.executable, "-m", module]
