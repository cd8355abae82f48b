"""Extension point for records and reports of a particular kind of run."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any


class Reporter:
    """Hooks called by a Session, on rank 0 only; no-ops by default. Subclasses write their own files and log lines."""

    def stage_seconds(self) -> dict[str, float] | None:
        """Return the seconds of each stage of a step since the last call, by name; None without timing."""

    def state(self) -> str:
        """Return a clause on the parameter values, for messages on non-finite numbers."""
        return ""

    def extend(self, record: dict[str, Any]) -> None:
        """Add entries for metrics.jsonl to an epoch's record."""

    def scalars(self, record: Mapping[str, Any]) -> dict[str, float | None]:
        """Return TensorBoard scalars in addition to rate, losses, validation and time."""
        return {}

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Handle an epoch, after its log lines and before its checkpoint."""

    def publish(self) -> None:
        """Update the report; called after some epochs, without time limit."""

    def conclude(self, interruptible: Callable[[], AbstractContextManager[Any]]) -> None:
        """Write the result after the last epoch. Other ranks may have ended.

        interruptible  context manager for work that a signal may interrupt
        """

    def ending(self) -> str:
        """Return how the training ended if before its last epoch, for the status file."""
        return ""

    def finished(self) -> None:
        """Log the result and update the report, after all files are written."""
