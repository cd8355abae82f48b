"""Jobs of a sweep: each runs one search, through submitit, on this machine or on SLURM.

A job imports this module first, so it has no heavy imports.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

TIMEOUTS = 100  # requeues of a job after its time limit; submitit's local executor stops at 6
LEFT = 75  # exit status of a run stopped by a signal: engine.signals.AGAIN
PAUSE, SLURM_PAUSE = 0.1, 5.0  # seconds between polls of running jobs
REPEAT = 3.0  # seconds before a local job gets its stop signal again: submitit loses signals while it starts a job
VISIBLE = "CUDA_VISIBLE_DEVICES"


class NoExecutor(RuntimeError):
    """The requested executor is unavailable; the message gives the remedy."""


class Task:
    """Callable of a submitit job: runs the command, appending its output to `log`, and returns its exit status.

    Shortly before the time limit the run saves a checkpoint, and the job is requeued.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.command, self.log = tuple(command), log

    def __call__(self) -> int:
        with open(self.log, "ab") as file:
            self.run = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        signal.signal(signal.SIGTERM, self._stop)
        return self.run.wait()

    def checkpoint(self) -> Any:
        """Stop the run and return the job to requeue (submitit's protocol)."""
        from submitit.helpers import DelayedSubmission

        self.run.send_signal(signal.SIGTERM)
        with suppress(ChildProcessError):  # already ended
            os.waitid(os.P_PID, self.run.pid, os.WEXITED | os.WNOWAIT)  # interrupts run.wait, which holds a lock
        return DelayedSubmission(Task(self.command, self.log))

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.run.send_signal(number)


class Job:
    """Submitted run; gpu: the one that it sees, if it was given one."""

    def __init__(self, job: Any, local: bool, gpu: str | None = None) -> None:
        self.job, self.local, self.gpu = job, local, gpu
        self.asked = 0.0  # time of the stop request, monotonic clock
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the run's exit status, negative for a killing signal; None while it runs."""
        if self._status is None:
            self._status = self._ended()
        return self._status

    def _ended(self) -> int | None:
        if self.asked and not self.local:
            return LEFT  # SLURM grants time for a checkpoint; nothing waits for it
        if not self.job.done():
            if self.asked and monotonic() - self.asked > REPEAT:
                self.stop()
            return None
        if self.job.exception() is not None:  # of the job, not the run: for example, it was killed
            return LEFT if self.asked else 1
        return self.job.result()

    def stop(self) -> None:
        """Send SIGTERM, the only signal that submitit forwards: the run saves a checkpoint and exits."""
        self.asked = monotonic()
        if self.local:
            os.kill(int(self.job.job_id), signal.SIGTERM)
        else:
            self.job.cancel(check=False)


class Executor:
    """Executor of up to `jobs` concurrent runs, on this machine (cluster "local") or on SLURM ("slurm").

    folder   folder of submitit's files
    minutes  time limit of a job, after which it saves a checkpoint and is requeued
    slurm    sbatch parameters by submitit's names
    gpus     local GPUs in CUDA_VISIBLE_DEVICES' notation: each local job gets the one with the fewest jobs; without any, jobs
             see what the sweep sees
    Raises NoExecutor.
    """

    def __init__(
        self, cluster: str, folder: Path, jobs: int, minutes: int, slurm: Mapping[str, Any], gpus: Sequence[str] = ()
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise NoExecutor("a sweep starts its runs through submitit: pip install 'fastdarts[sweep]'") from error
        self.jobs, self.local, self.gpus = jobs, cluster == "local", gpus
        self.pause = PAUSE if self.local else SLURM_PAUSE
        self._started: list[Job] = []
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=cluster, slurm_max_num_timeout=TIMEOUTS)
            self._executor.update_parameters(timeout_min=minutes, **{f"slurm_{name}": value for name, value in slurm.items()})
        except (RuntimeError, ValueError, NameError, TypeError) as error:  # srun is missing, or an unknown parameter
            raise NoExecutor(f"--executor {cluster}: {str(error).splitlines()[0]}") from error

    def start(self, name: str, command: Sequence[str], log: Path) -> Job:
        """Start `command` as the job `name`; its output is appended to the file `log`."""
        self._started = [job for job in self._started if job.poll() is None]
        taken = [job.gpu for job in self._started]
        gpu = min(self.gpus, key=taken.count, default=None)
        if self.local:  # submitit hides all GPUs from local jobs
            visible = os.environ.get(VISIBLE) if gpu is None else gpu
            command = ["env", *(["-u", VISIBLE] if visible is None else [f"{VISIBLE}={visible}"]), *command]
        self._executor.update_parameters(name=name)
        with _interrupts_ignored():
            job = Job(self._executor.submit(Task(command, log)), self.local, gpu)
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
