"""What the processes of one search agree on after a step; here the one that is alone."""

from typing import Any, Protocol


class Ranks(Protocol):
    """The processes of a search. All call the same of these methods after the same step.

    rank  of this one; rank 0 writes the run folder
    """

    rank: int

    def agree(self, signal: int, due: bool) -> tuple[int, bool]:
        """A signal that any of them has got (0: none), and whether rank 0 finds a checkpoint due."""
        ...

    def gather(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """Every rank's `state`, by rank."""
        ...

    def wait(self) -> None:
        """Until all have come here."""
        ...


class Alone:
    """The only process."""

    rank = 0

    def agree(self, signal: int, due: bool) -> tuple[int, bool]:
        return signal, due

    def gather(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        return [state]

    def wait(self) -> None:
        pass
