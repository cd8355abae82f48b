"""`status` file: one line of text on the progress of a run, for schedulers and scripts.

    running  epoch 3/50  step 2500/62500  loss 0.4321  images/s 812.3  left 1:23:45  updated 2026-01-31T12:00:00+00:00
    stopped: SIGTERM  epoch 3/50  step 2507/62500  updated 2026-01-31T12:00:09+00:00
    finished  epoch 50/50  step 62500/62500  loss 0.1234  updated 2026-02-01T09:00:00+00:00

The first word is running, finished or stopped; stopped is followed by the reason. The loss is the training step's, for a
finished run the mean over its last epoch. Updates are atomic.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

SECONDS = 1.0  # between two updates


class Status:
    """Writer of a status file; raises OSError if it cannot write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = -SECONDS

    def running(self, where: str) -> None:
        """Report a running run at `where`, at most every SECONDS."""
        if monotonic() - self._last >= SECONDS:
            self._write(f"running  {where}")
            self._last = monotonic()

    def finished(self, where: str) -> None:
        """Report a finished run at `where`."""
        self._write(f"finished  {where}")

    def stopped(self, why: str, where: str) -> None:
        """Report a run stopped at `where` before its end."""
        self._write(f"stopped: {' '.join(why.split())}  {where}")

    def _write(self, line: str) -> None:
        """Write the line without fsync: a status is useless after a machine crash, and a step should not wait for the disk."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(f"{line.rstrip()}  updated {now}\n", encoding="utf-8", errors="backslashreplace")
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
