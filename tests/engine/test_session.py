"""A trainable of a few lines in a Session: it is killed, stopped, poisoned and shared by two ranks, and ends the same."""

import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.engine import RankInfo, Reporter, RunFolder, RunFolderError, Session, SignalHandler, Stopped, World
from fastdarts.engine.checkpoints import load_checkpoint
from fastdarts.protocols import DivergedError, Extent, Hooks, Part, StepReport

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, EPOCHS, IMAGES = 4, 3, 6
FILES = [f"{number}.png" for number in range(STEPS * IMAGES)]
ALWAYS = 1e-9  # minutes: a checkpoint after each step
Act = Callable[[int], None]
processes = get_context("fork")


class Line:
    """Least squares by noisy gradients with momentum: three numbers of an image determine its label.

    act     called in each step with its number, from 1, and with -number while it waits for the batch after that step
    poison  an image that makes the loss NaN
    """

    parts = (Part("the weights", "train"),)
    device = torch.device("cpu")

    def __init__(self, world: World, act: Act = lambda step: None, poison: int = -1) -> None:
        self.world, self.act, self.poison = world, act, poison
        self.w, self.v, self.skipped = torch.zeros(3).double(), torch.zeros(3).double(), torch.zeros(1, dtype=torch.int64)
        self.epoch = self.step = self.positions = 0
        self.losses: list[Tensor] = []

    @property
    def done(self) -> Extent:
        return Extent(self.epoch, self.step, self.step)

    @property
    def total(self) -> Extent:
        return Extent(EPOCHS, EPOCHS * STEPS, EPOCHS * STEPS)

    def epochs(self, hooks: Hooks) -> Iterator[dict[str, Any]]:
        while self.epoch < EPOCHS:
            if not self.losses:
                self.skipped.zero_()
            while len(self.losses) < STEPS:
                self._advance(hooks)
            with hooks.interruptible():
                figures = [self._loss(self.w, batch) for batch in hooks.batches([self._batch(n) for n in range(2)])]
            self.world.average(valid := torch.stack(figures).mean())
            loss = float(torch.stack(self.losses).nanmean())
            self.epoch, self.losses = self.epoch + 1, []
            record = {"epoch": self.epoch, "step": self.step, "lr": 0.1, "train_loss": loss, "valid": {"loss": float(valid)}}
            yield record | {"seconds": 1.0, "input_seconds": 0.5, "images_per_s": 8.0}

    def _advance(self, hooks: Hooks) -> None:
        with hooks.interruptible():
            self.act(-self.step)
            batch = self._batch(self.positions % STEPS)
        self.positions += 1
        self.act(self.step + 1)
        w = self.w.clone().requires_grad_()
        loss = self._loss(w, batch) * (torch.nan if (batch.index == self.poison).any() else 1.0)
        self.world.average(flat := torch.cat([loss.detach()[None], *torch.autograd.grad(loss, [w])]))
        loss, gradient = flat[0], flat[1:] + 0.01 * torch.randn(3)
        if gradient.isfinite().all():
            self.v.mul_(0.9).add_(gradient)
            self.w.sub_(0.1 * self.v)
        else:
            self.skipped += 1
        self.step += 1
        self.losses.append(loss)
        hooks.on_step(
            StepReport(self.epoch + 1, self.step, EPOCHS * STEPS, IMAGES, (self.losses[-1],), self.skipped, (batch.index,))
        )

    def _batch(self, number: int) -> Batch:
        """This rank's share of a batch of IMAGES."""
        index = torch.arange(IMAGES * number, IMAGES * (number + 1))[self.world.rank :: self.world.size]
        images = torch.stack([torch.rand(3, generator=torch.Generator().manual_seed(int(n))) for n in index]).double()
        return Batch(images, images @ torch.tensor([1.0, -2.0, 3.0]).double(), index, index < 0)

    @staticmethod
    def _loss(w: Tensor, batch: Batch) -> Tensor:
        return (batch.images @ w - batch.labels).square().mean()

    def state_dict(self) -> dict[str, Any]:
        counts = {"epoch": self.epoch, "step": self.step, "positions": self.positions, "skipped": self.skipped}
        return counts | {"w": self.w, "v": self.v, "losses": self.losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.step, self.positions = state["epoch"], state["step"], state["positions"]
        for name in ("w", "v", "skipped"):
            getattr(self, name).copy_(state[name])
        self.losses = state["losses"]

    def move_loaders(self, positions: int) -> None:
        self.positions = positions

    def named_tensors(self) -> dict[str, Tensor]:
        return {"w": self.w}

    def seeking(self) -> bool:
        return False


@dataclass(frozen=True)
class Options:
    checkpoint_minutes: float = ALWAYS
    keep_checkpoints: int = 2
    on_bad: Literal["skip", "stop", "rewind"] = "skip"
    check_ranks_every: int = 1
    log_every: int = 2
    tensorboard: bool = False
    profile: str | None = None


def train(
    folder: Path,
    act: Act = lambda step: None,
    poison: int = -1,
    reporter: Reporter | None = None,
    world: World | None = None,
    **options: Any,
) -> Line:
    """Begin or continue the run in `folder`."""
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    line = Line(world or World(), act, poison)
    with SignalHandler() as signals:
        how = {"files": FILES, "signals": signals, "world": world}
        Session(line, RunFolder(folder), Options(**options), reporter or Reporter(), **how).run()
    return line


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A run that was left in peace."""
    train(folder := tmp_path_factory.mktemp("runs") / "run")
    return folder


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if r["kind"] == kind]


def assert_same(folder: Path, other: Path) -> None:
    """Byte by byte what was measured, and bit by bit where it ended, random generators too."""
    assert (folder / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    mine, theirs = (load_checkpoint(f / "checkpoint.pt") for f in (folder, other))
    assert mine.keys() == theirs.keys()
    for name in ("epoch", "step", "positions", "best"):
        assert mine[name] == theirs[name]
    assert torch.equal(mine["w"], theirs["w"]) and torch.equal(mine["v"], theirs["v"])
    assert torch.equal(mine["rng"][0]["torch"], theirs["rng"][0]["torch"])


class Noting(Reporter):
    """Notes what it is asked for, and whether the checkpoint of the epoch was there already."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, []

    def stage_seconds(self) -> dict[str, float]:
        return {"weights": 0.25}

    def extend(self, record: dict[str, Any]) -> None:
        self.calls.append(f"extend {record['epoch']}")
        record["extra"] = 10 * record["epoch"]

    def epoch(self, record: Mapping[str, Any]) -> None:
        self.calls.append(f"epoch {record['extra']}, {len(records(self.folder, 'epoch'))} lines")

    def publish(self) -> None:
        self.calls.append("publish")

    def conclude(self, interruptible: Callable[[], AbstractContextManager[Any]]) -> None:
        with interruptible():
            self.calls.append(f"conclude, {(self.folder / 'status').read_text().split()[0]}")

    def finished(self) -> None:
        self.calls.append(f"finished, {(self.folder / 'status').read_text().split()[0]}")


def test_folder_contents(finished: Path) -> None:
    """Records, checkpoints, timing and status of a finished run."""
    epochs, steps = records(finished, "epoch"), records(finished, "step")
    assert [(r["epoch"], r["step"]) for r in steps] == [(1, 2), (1, 4), (2, 6), (2, 8), (3, 10), (3, 12)]
    assert steps[0].keys() == {"kind", "epoch", "step", "train_loss"}
    assert [list(r) for r in epochs] == [["kind", "epoch", "step", "lr", "train_loss", "valid"]] * EPOCHS
    assert epochs[-1]["valid"]["loss"] < 0.5 * epochs[0]["valid"]["loss"]
    losses = [r["valid"]["loss"] for r in epochs]
    best = load_checkpoint(finished / "checkpoint-best.pt")
    assert best["best"] == min(losses) == losses[best["epoch"] - 1]
    timing = json.loads((finished / "timing.jsonl").read_text().splitlines()[-1])
    assert timing == {"epoch": 3, "seconds": 1.0, "input_seconds": 0.5, "images_per_s": 8.0}
    assert (finished / "status").read_text().startswith("finished  epoch 3/3  step 12/12  loss ")
    assert not list(finished.glob(".checkpoint*"))


def test_reporter_is_called_in_order(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fastdarts.engine.session.REPORT_SECONDS", -1.0)
    caplog.set_level("INFO", "fastdarts")
    noting = Noting(tmp_path)
    train(tmp_path, reporter=noting)
    each = [[f"extend {n}", f"epoch {10 * n}, {n} lines", "publish"] for n in (1, 2, 3)]
    assert noting.calls == [call for calls in each for call in calls] + ["conclude, running", "finished, finished"]
    assert [r["extra"] for r in records(tmp_path, "epoch")] == [10, 20, 30]
    stages = [json.loads(line)["stages"] for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert stages == [{"input": 0.5, "weights": 0.25}] * EPOCHS
    assert "epoch 1/3  step 2/12  train " in caplog.text and "alpha" not in caplog.text
    assert load_checkpoint(tmp_path / "checkpoint.pt")["w"].equal(load_checkpoint(finished / "checkpoint.pt")["w"])


def test_finished_run_does_nothing(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fastdarts")
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.name != "status"}
    train(finished)
    assert "nothing left to do" in caplog.text
    assert before == {path.name: path.read_bytes() for path in finished.iterdir() if path.name != "status"}


def at(step: int, number: int) -> Act:
    return lambda now: os.kill(os.getpid(), number) if now == step else None


@pytest.mark.parametrize("seed", range(3))
def test_resume_after_kill_is_bitwise_identical(seed: int, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for step in sorted(random.Random(seed).sample(range(1, STEPS * EPOCHS + 1), 2)):
        process = processes.Process(target=train, args=(folder, at(step, signal.SIGKILL)))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    train(folder)
    assert_same(folder, finished)


@pytest.mark.parametrize("step", [1, 4, 6, 12])
def test_resume_after_stop_is_bitwise_identical(step: int, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="SIGTERM"):
        train(tmp_path / "run", at(step, signal.SIGTERM), checkpoint_minutes=0.0)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == step
    assert (tmp_path / "run" / "status").read_text().startswith("stopped: SIGTERM")
    train(tmp_path / "run")
    assert_same(tmp_path / "run", finished)


@pytest.mark.parametrize(("poison", "saved"), [(-1, 2), (7, None)], ids=["good", "bad"])
def test_stop_while_waiting_saves_only_finite_steps(poison: int, saved: int | None, tmp_path: Path) -> None:
    """The second step's numbers are bad and nobody has looked yet: with --on_bad stop they are in no checkpoint."""
    seldom = {"on_bad": "stop", "log_every": 100, "checkpoint_minutes": 0.0}
    with pytest.raises(Stopped):
        train(tmp_path, at(-2, signal.SIGTERM), poison, **seldom)
    path = tmp_path / "checkpoint.pt"
    assert (load_checkpoint(path)["step"] if path.exists() else None) == saved


def test_conclusion_is_interruptible(finished: Path, tmp_path: Path) -> None:
    class Interrupted(Noting):
        def conclude(self, interruptible: Callable[[], AbstractContextManager[Any]]) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            self.calls.append("noted")
            super().conclude(interruptible)

    noting = Interrupted(tmp_path)
    with pytest.raises(Stopped):
        train(tmp_path, reporter=noting)
    assert noting.calls[-1] == "noted" and (tmp_path / "status").read_text().startswith("stopped: SIGTERM")
    train(tmp_path)
    assert (tmp_path / "status").read_text().startswith("finished")


def test_non_finite_steps_are_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    line = train(tmp_path, poison=7)
    assert line.w.isfinite().all() and line.skipped.tolist() == [1]
    named = "step 2 of epoch 1: the loss of the weights is nan, the update of the weights was skipped; images of the weights: "
    assert named + "6.png, 7.png, 8.png, 9.png and 2 more" in caplog.text and "last checkpoint: step 1" in caplog.text
    assert [r["train_loss"] is None for r in records(tmp_path, "step")] == [True, False] * EPOCHS


def test_non_finite_step_stops_before_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"step 2 of epoch 1: .*7\.png.*--on_bad skip or rewind would continue"):
        train(tmp_path, poison=7, on_bad="stop")
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 1


def test_non_finite_step_rewinds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    line = train(tmp_path, poison=7, on_bad="rewind")
    assert caplog.text.count("rewound to step ") >= EPOCHS and "with the images after those of step 2\n" in caplog.text
    assert line.step == STEPS * EPOCHS < line.positions and not line.skipped.any()
    assert [r["step"] for r in records(tmp_path, "step")] == list(range(2, 13, 2))


def test_repeated_rewinds_end_the_run(tmp_path: Path) -> None:
    """Checkpoints are of whole epochs only, and each epoch has a bad step."""
    with pytest.raises(DivergedError, match=r"step 4 of epoch 1: .* rewound to step 0 3 times with the same result"):
        train(tmp_path, poison=7, on_bad="rewind", checkpoint_minutes=0.0)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 0


def test_foreign_checkpoint_is_rejected(finished: Path, tmp_path: Path) -> None:
    state = load_checkpoint(finished / "checkpoint.pt")
    torch.save(state | {"w": torch.zeros(4)}, tmp_path / "checkpoint.pt")
    with pytest.raises(RunFolderError, match="does not fit this run"):
        train(tmp_path)


def rank_of_two(rank: int, port: int, folder: Path, act: Act) -> None:
    """Trains as that rank and leaves its weights; exit status 75 where it was stopped."""
    seat = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ.update({name: str(value) for name, value in (seat | meeting).items()})
    with World.join(RankInfo.of_environment(), "cpu", 60.0) as world:
        try:
            line = train(folder, act if rank else lambda step: None, world=world)
        except Stopped as stopped:
            os._exit(stopped.status)
        torch.save(line.w, folder / f"{rank}.w")


def two_ranks(folder: Path, act: Act = lambda step: None) -> list[int | None]:
    """Exit statuses; `act` is rank 1's."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [processes.Process(target=rank_of_two, args=(rank, store.port, folder, act)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    return [process.exitcode for process in ranks]


def test_two_ranks_match_one_process(finished: Path, tmp_path: Path) -> None:
    """Stopped by a signal to the second one, and continued: equal to the bit, and to one process but for rounding."""
    folder = tmp_path / "run"
    assert two_ranks(folder, at(6, signal.SIGTERM)) == [75, 75]
    assert load_checkpoint(folder / "checkpoint.pt")["step"] == 6
    assert two_ranks(folder) == [0, 0]
    first, second = (torch.load(folder / f"{rank}.w") for rank in range(2))
    assert torch.equal(first, second)
    assert torch.allclose(first, load_checkpoint(finished / "checkpoint.pt")["w"], rtol=1e-12, atol=0)
    for mine, one in zip(records(folder, "epoch"), records(finished, "epoch"), strict=True):
        assert mine["valid"]["loss"] == pytest.approx(one["valid"]["loss"], rel=1e-12)
        assert mine["train_loss"] == pytest.approx(one["train_loss"], rel=1e-12)
