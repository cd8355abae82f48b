"""`status`: one line of text that says where a run stands, for schedulers and scripts.

    running  epoch 3/50  step 2500/62500  loss 0.4321  images/s 812.3  left 1:23:45  updated 2026-01-31T12:00:00+00:00
    stopped: SIGTERM  epoch 3/50  step 2507/62500  updated 2026-01-31T12:00:09+00:00
    finished  epoch 50/50  step 62500/62500  loss 0.1234  updated 2026-02-01T09:00:00+00:00

The first word is running, finished or stopped; after stopped comes why. The loss is that of the training step, of a finished
run the mean over its last epoch. Readers find the old line or the new one.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

SECONDS = 1.0  # between two updates


class Status:
    """Keeps a status file up to date; what it cannot write raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = -SECONDS

    def running(self, where: str) -> None:
        """The run goes on, at `where`. Written every SECONDS at most."""
        if monotonic() - self._last >= SECONDS:
            self._write(f"running  {where}")
            self._last = monotonic()

    def finished(self, where: str) -> None:
        """The run came to its end, at `where`."""
        self._write(f"finished  {where}")

    def stopped(self, why: str, where: str) -> None:
        """The run ends at `where` and has not come to its end."""
        self._write(f"stopped: {' '.join(why.split())}  {where}")

    def _write(self, line: str) -> None:
        """No fsync: a status is worth nothing after a crash of the machine, and a step should not wait for the disk."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(f"{line.rstrip()}  updated {now}\n", encoding="utf-8", errors="backslashreplace")
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
