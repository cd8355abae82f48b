"""Schedule and restore the checkpoints of a training run."""

from math import isfinite
from time import perf_counter
from typing import Any

from fastdarts.engine.checkpoints import steps_of
from fastdarts.engine.distributed import World
from fastdarts.engine.rng import rng_state, set_rng_state
from fastdarts.engine.run_folder import RunFolder, RunFolderError
from fastdarts.engine.writer import Writer
from fastdarts.protocols import Trainable


class Saver:
    """Save `trainable` to checkpoints in `folder`, and restore it. Collective; rank 0 writes.

    saved    finished steps in the last checkpoint; -1 before the first
    best     lowest score so far
    minutes  interval after which `late` requests a checkpoint; 0: never
    keep     number of newest checkpoints to keep
    """

    def __init__(self, trainable: Trainable, folder: RunFolder, *, minutes: float, keep: int) -> None:
        self.trainable, self.folder, self.minutes, self.keep = trainable, folder, minutes, keep
        self.writer = Writer()
        self.saved, self.saved_at = -1, perf_counter()
        self.best: float | None = None

    def load(self, state: dict[str, Any], rank: int) -> None:
        """Restore the trainable and this rank's random generators. Raises RunFolderError for an incompatible state."""
        try:
            self.trainable.load_state_dict(state)
            if rank < len(state.get("rng", ())):
                set_rng_state(state["rng"][rank], self.trainable.device)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunFolderError(f"the checkpoint in {self.folder.path} does not fit this run ({reason})") from error
        self.saved, self.saved_at, self.best = steps_of(state), perf_counter(), state.get("best")

    @property
    def late(self) -> bool:
        """Return whether the next checkpoint is due and the last one written."""
        return bool(self.minutes) and not self.writer.busy and perf_counter() - self.saved_at >= 60 * self.minutes

    def save(self, world: World, score: float | None = None) -> None:
        """Copy the state now and write it during the next steps. score: of an evaluated epoch, lower is better."""
        best, rng = self._is_best(score), world.gather(rng_state(self.trainable.device))
        self.saved, self.saved_at = self.trainable.done.steps, perf_counter()
        if world.is_main:
            state = self.trainable.state_dict() | {"rng": rng, "best": self.best}
            self.writer.write(state, lambda copy: self.folder.save(copy, best, self.keep))

    def _is_best(self, score: float | None) -> bool:
        """Return whether the score is the lowest so far, and store it."""
        if score is None or not isfinite(score) or (self.best is not None and score >= self.best):
            return False
        self.best = score
        return True
