"""What one kind of run records and reports beyond what every run does."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any


class Reporter:
    """Called by a Session, on rank 0 only; here each method does nothing. The files and lines are the subclass' own."""

    def stage_seconds(self) -> dict[str, float] | None:
        """Seconds that each stage of a step took since the last call, by name; None where they are not timed."""

    def state(self) -> str:
        """A clause on the values of the parameters, for a line about numbers that went bad."""
        return ""

    def extend(self, record: dict[str, Any]) -> None:
        """Add to an epoch's record what metrics.jsonl is to have of it."""

    def scalars(self, record: Mapping[str, Any]) -> dict[str, float | None]:
        """What TensorBoard shows of the record besides rate, losses, validation and time."""
        return {}

    def epoch(self, record: Mapping[str, Any]) -> None:
        """After an epoch's lines, before its checkpoint."""

    def publish(self) -> None:
        """Bring the report up to date: now and then after an epoch, as long as it takes."""

    def conclude(self, interruptible: Callable[[], AbstractContextManager[Any]]) -> None:
        """After the last epoch: write the result. Other ranks may have ended.

        interruptible  entered around work that a signal may break off
        """

    def ending(self) -> str:
        """How the training ended, where it is not by its last epoch: for the status file."""
        return ""

    def finished(self) -> None:
        """After all files: log the result and bring the report up to date."""
