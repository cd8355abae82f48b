"""Two ranks that are stopped, or of which one sees a poisoned image: both end alike, and go on to the same bytes.

They are started as torchrun does it (tests.support.runs.Ranks), which tests/test_torchrun.py shows of torchrun itself.
"""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from fastdarts.data import ImageIndex
from fastdarts.engine.checkpoints import load_checkpoint
from tests.support.runs import KILLED, SPLIT, TINY, Ranks, contents, write_tree

STEPS, EPOCHS = 4, 3  # an epoch's, of the searches here
EACH_STEP = ["--checkpoint_minutes", "1e-9"]


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    tree = write_tree(tmp_path_factory.mktemp("images"))
    sizes = ["--batch_size", "2", "--image_size", "64", "--epochs", str(EPOCHS), "--begin", "1"]
    return ["--data", str(tree), *TINY, *SPLIT, *sizes, "--check_ranks_every", "1"]


@pytest.fixture(scope="module")
def finished(argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left in peace."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert search(argv, folder)[0] == 0
    return folder


def search(argv: list[str], folder: Path, hook: Callable[[], None] | None = None) -> tuple[int, str]:
    """Exit status and output."""
    output = folder.with_suffix(".out")
    output.unlink(missing_ok=True)
    ranks = Ranks([*argv, "--save", str(folder)], output, hook)
    return ranks.wait(), ranks.printed()


def steps(folder: Path) -> int:
    return int(load_checkpoint(folder / "checkpoint.pt")["step"])


def of_rank(rank: int) -> bool:
    return os.environ["RANK"] == str(rank)


def signalled(number: int, rank: int, step: int) -> None:
    """A hook: the rank gets the signal inside the step."""
    from fastdarts.steps import CapturedSteps

    plain = CapturedSteps.__call__

    def call(self: CapturedSteps, at: torch.Tensor, *batches: object) -> object:
        if of_rank(rank) and int(at) + 1 == step:
            os.kill(os.getpid(), number)
        return plain(self, at, *batches)

    CapturedSteps.__call__ = call


def signalled_in_evaluation(rank: int) -> None:
    """A hook: the rank gets SIGTERM with the second batch of an evaluation."""
    from fastdarts.objectives import MaskedReconstruction

    plain, seen = MaskedReconstruction.evaluate, []

    def evaluate(self: MaskedReconstruction, *args: object) -> dict[str, torch.Tensor]:
        seen.append(1)
        if of_rank(rank) and len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        assert len(seen) < 4, "went on"
        return plain(self, *args)

    MaskedReconstruction.evaluate = evaluate


@pytest.mark.parametrize(
    ("number", "rank", "step", "status"), [(signal.SIGTERM, 1, 6, 75), (signal.SIGUSR1, 0, 8, 75), (signal.SIGINT, 1, 12, 130)]
)
def test_signal_to_one_rank_stops_all_without_loss(
    number: int, rank: int, step: int, status: int, argv: list[str], finished: Path, tmp_path: Path
) -> None:
    folder, began = tmp_path / "run", time.monotonic()
    ended, printed = search(argv, folder, partial(signalled, number, rank, step))
    assert ended == status and time.monotonic() - began < 60
    assert printed.count(f"stopped by {signal.Signals(number).name}; the same command") == 1 and "Traceback" not in printed
    assert steps(folder) == step
    assert search(argv, folder)[0] == 0
    assert contents(folder) == contents(finished)


def test_interrupted_evaluation_is_repeated_on_all_ranks(argv: list[str], finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended, printed = search(argv, folder, partial(signalled_in_evaluation, 1))
    assert ended == 75 and "Traceback" not in printed, printed
    assert steps(folder) == STEPS
    assert search(argv, folder)[0] == 0
    assert contents(folder) == contents(finished)


def poison(number: int) -> None:
    """A hook: an image of that number has pixels that are not numbers, on whichever rank sees it."""
    from fastdarts.objectives import MaskedReconstruction

    plain = MaskedReconstruction.forward

    def forward(self: MaskedReconstruction, supernet: object, weights: object, batch: object, *args: object) -> torch.Tensor:
        factor = torch.where((batch.index == number).any(), torch.nan, 1.0)
        return plain(self, supernet, weights, batch, *args) * factor

    MaskedReconstruction.forward = forward


@pytest.fixture
def poisoned(argv: list[str], finished: Path) -> tuple[str, Callable[[], None]]:
    """The name of an image that makes every loss NaN, and the hook that does it."""
    name = (finished / "train.txt").read_text().split()[3]
    return name, partial(poison, ImageIndex.from_root(Path(argv[1])).files.index(name))


def epochs(folder: Path) -> list[dict]:
    return [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if r["kind"] == "epoch"]


def test_non_finite_step_of_one_rank_is_skipped_on_all(argv: list[str], poisoned: tuple, tmp_path: Path) -> None:
    name, hook = poisoned
    status, printed = search(argv, tmp_path / "run", hook)
    assert status == 0, printed
    assert [(r["not_finite"], r["skipped"]) for r in epochs(tmp_path / "run")] == [([1, 0], [1, 0])] * EPOCHS
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "[rank 1]" not in printed
    assert log.count(name) == EPOCHS and log.count("the update of the weights was skipped; images of the weights:") == EPOCHS


def test_non_finite_step_of_one_rank_stops_all(argv: list[str], poisoned: tuple, tmp_path: Path) -> None:
    name, hook = poisoned
    status, printed = search([*argv, "--on_bad", "stop", *EACH_STEP], tmp_path / "run", hook)
    assert status == 1 and "Traceback" not in printed
    (message,) = re.findall(r"error: stopped.*|stopped: step .*", (tmp_path / "run" / "log.txt").read_text())
    assert name in message
    bad = int(re.search(r"step (\d+) of epoch", message)[1])
    assert not (tmp_path / "run" / "checkpoint.pt").exists() or steps(tmp_path / "run") < bad


def test_non_finite_step_of_one_rank_rewinds_all(argv: list[str], poisoned: tuple, tmp_path: Path) -> None:
    _, hook = poisoned
    status, printed = search([*argv, "--on_bad", "rewind", *EACH_STEP], tmp_path / "run", hook)
    assert status == 0, printed  # the ranks' weights were compared after each step
    assert [r["epoch"] for r in epochs(tmp_path / "run")] == [1, 2, 3]
    assert not any("skipped" in r or "not_finite" in r for r in epochs(tmp_path / "run"))
    assert printed.count("rewound to step ") >= EPOCHS - 1


def killed_before_going_back(number: int) -> None:
    """A hook: `poison`, and rank 1 is killed as soon as it is to go back."""
    from fastdarts.engine import Session

    poison(number)
    plain = Session._rewind

    def rewind(self: Session, bad: object) -> None:
        if of_rank(1):
            os.kill(os.getpid(), signal.SIGKILL)
        plain(self, bad)

    Session._rewind = rewind


def test_rank_lost_during_rewind(argv: list[str], poisoned: tuple, tmp_path: Path) -> None:
    (_, hook), began = poisoned, time.monotonic()
    dies = partial(killed_before_going_back, *hook.args)
    status, printed = search([*argv, "--on_bad", "rewind", *EACH_STEP], tmp_path / "run", dies)
    assert status == -signal.SIGKILL and "rank 0 of 2 lost the others" in printed
    assert time.monotonic() - began < KILLED
