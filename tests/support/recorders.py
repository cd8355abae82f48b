"""Stand-ins for steps.cuda_graph.Recorder without a GPU, and for the average over several ranks."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastdarts.steps.cuda_graph import WARM_UP, Recording
from tests.support.tape import Tape


class Repeats:
    """Stands in for Recorder: capturing runs nothing, replaying runs the work and leaves its result in one place."""

    made: list["Repeats"]

    def __init__(self, device: torch.device) -> None:
        self.pieces = 0
        self.warmed = 0
        Repeats.made.append(self)

    def warm_up(self, work: Callable[[], Tensor]) -> str | None:
        for _ in range(WARM_UP):
            torch.rand(1)  # as an objective with dropout would
            work()
            self.warmed += 1
        return None

    def capture(self, work: Callable[[], Tensor]) -> Recording:
        loss, self.pieces = torch.full((), torch.nan, dtype=torch.float64), self.pieces + 1
        return Recording(lambda: loss.copy_(work()), loss)


class Tapes(Repeats):
    """Stands in for Recorder: replays the operators that ran while capturing."""

    def capture(self, work: Callable[[], Tensor]) -> Recording:
        tape, self.pieces, rng = Tape(), self.pieces + 1, torch.get_rng_state()
        with tape:
            loss = work()
        tape.put_back()
        torch.set_rng_state(rng)  # a capture draws nothing
        return Recording(tape.replay, loss)


class Averages:
    """Stands in for several ranks: what is averaged becomes something else each time, so a forgotten average shows."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, flat: Tensor) -> None:
        self.sizes.append(flat.numel())
        flat.mul_(1 + 2.0 ** -(3 + len(self.sizes) % 3))
