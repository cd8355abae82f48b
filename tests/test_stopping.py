"""A search that is stopped, killed, poisoned, or cannot write: it ends with a clear line, and goes on to the same bytes."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastdarts import steps
from fastdarts.data import ImageIndex
from fastdarts.engine.checkpoints import load_checkpoint
from fastdarts.objectives import MaskedReconstruction
from fastdarts.search import Search
from fastdarts.search_imagenet import main
from fastdarts.steps import CapturedSteps
from tests.support.runs import SPLIT, TINY, Run, contents, hasten, write_tree

STEPS, EPOCHS = 4, 3  # an epoch's, of the searches here
EACH_STEP = ["--checkpoint_minutes", "1e-9"]


@pytest.fixture(scope="module", autouse=True)
def no_report() -> Iterator[None]:
    """Drawing takes longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        hasten(patch)
        yield


@pytest.fixture(scope="module")
def argv(tmp_path_factory, no_report):
    tree = write_tree(tmp_path_factory.mktemp("images"))
    epochs = ["--epochs", str(EPOCHS), "--begin", "1", "--threads", "1"]
    return ["--data", str(tree), *TINY, *SPLIT, "--batch_size", "2", *epochs]


@pytest.fixture(scope="module")
def finished(argv, tmp_path_factory):
    """A run that was left in peace."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main([*argv, "--save", str(folder)]) == 0
    return folder


def saved_steps(folder):
    return int(load_checkpoint(folder / "checkpoint.pt")["step"])


def at_step(monkeypatch, number, act):
    """Call `act` inside the step `number`, from 1."""
    plain = CapturedSteps.__call__  # not the planner's, whose step has no number

    def call(self, step, train, val):
        if int(step) + 1 == number:
            act()
        return plain(self, step, train, val)

    monkeypatch.setattr(CapturedSteps, "__call__", call)


def send(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "step", "status"),
    [(signal.SIGTERM, 1, 75), (signal.SIGUSR1, 6, 75), (signal.SIGINT, 8, 130), (signal.SIGTERM, 12, 75)],
    ids=["SIGTERM-first", "SIGUSR1", "SIGINT-epoch", "SIGTERM-last"],
)
def test_resume_after_stop_is_bitwise_identical(number, step, status, argv, finished, tmp_path, monkeypatch, capsys):
    run = [*argv, "--save", str(tmp_path / "run")]
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(patch, step, send(number))
        assert main(run) == status
    err = capsys.readouterr().err
    assert f"stopped by {signal.Signals(number).name}; the same command" in err and err.count("\n") == 1
    assert signal.getsignal(number) == before
    assert saved_steps(tmp_path / "run") == step
    where = f"epoch {(step - 1) // STEPS + 1}/{EPOCHS}  step {step}/{STEPS * EPOCHS}  updated "
    assert (tmp_path / "run/status").read_text().startswith(f"stopped: {signal.Signals(number).name}  {where}")
    assert main(run) == 0
    assert contents(tmp_path / "run") == contents(finished)
    inside = f" and {(step - 1) % STEPS + 1} steps"
    assert f"after epoch {(step - 1) // STEPS} of {EPOCHS}{inside}" in capsys.readouterr().out


def test_planner_is_interrupted_between_counted_steps(argv, tmp_path, monkeypatch, capsys):
    """Not inside one: it counts in callbacks of torch's C++, where an exception ends the process."""
    plain, counted = steps.step_bytes, []

    def step_bytes(*args, **how):
        send(signal.SIGTERM)()
        counted.append(plain(*args, **how))
        return counted[-1]

    monkeypatch.setattr(steps, "step_bytes", step_bytes)
    assert main([*argv, "--epochs", "6", "--method", "p-darts", "--save", str(tmp_path / "run")]) == 75
    assert len(counted) == 1 and "stopped by SIGTERM" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_interrupted_evaluation_is_repeated(argv, finished, tmp_path, monkeypatch):
    plain, seen = Search.evaluate, []

    def evaluate(self, hooks):
        send(signal.SIGTERM)()
        seen.append("went on")
        return plain(self, hooks)

    run = [*argv, "--save", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(Search, "evaluate", evaluate)
        assert main(run) == 75
    assert not seen and saved_steps(tmp_path / "run") == STEPS
    assert main(run) == 0
    assert contents(tmp_path / "run") == contents(finished)


def test_interrupted_file_check_leaves_no_folder(argv, tmp_path, monkeypatch, capsys):
    def check(*_):
        send(signal.SIGTERM)()
        pytest.fail("went on")

    monkeypatch.setattr("fastdarts.inputs.origin.verify", check)
    assert main([*argv, "--save", str(tmp_path / "run")]) == 75
    assert "stopped by SIGTERM" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_cache_fill_is_interrupted(argv, tmp_path, monkeypatch):
    from fastdarts.data import cache

    plain = cache.read_rgb

    def read(path):
        send(signal.SIGUSR1)()
        time.sleep(0.2)
        return plain(path)

    monkeypatch.setattr(cache, "read_rgb", read)
    assert main([*argv, "--save", str(tmp_path / "run"), "--cache", "ram"]) == 75
    assert not (tmp_path / "run").exists()


def test_interrupted_wait_for_input_saves_checkpoint(argv, tmp_path, monkeypatch):
    from fastdarts.data import workers

    plain = workers.Decoder.__call__

    def decode(self, request, batch):
        if self.view.train and request.epoch == 1:
            time.sleep(0.5)  # the search waits by now
            send(signal.SIGTERM)()
            time.sleep(0.5)
        return plain(self, request, batch)

    run = [*argv, "--save", str(tmp_path / "run"), "--cache", "off"]
    with monkeypatch.context() as patch:
        patch.setattr(workers.Decoder, "__call__", decode)
        began = time.monotonic()
        assert main(run) == 75
        assert time.monotonic() - began < 20
    assert saved_steps(tmp_path / "run") == STEPS
    assert main(run) == 0
    assert main([*argv, "--save", str(tmp_path / "peace"), "--cache", "off"]) == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "peace")


@pytest.mark.parametrize("seed", range(3))
def test_resume_after_kills_is_bitwise_identical(seed, argv, finished, tmp_path):
    """SIGKILL twice while checkpoints are written after each step."""
    chance, folder = random.Random(seed), tmp_path / "run"
    run = [*argv, "--save", str(folder), *EACH_STEP]
    for _ in range(2):
        process = Run(run, tmp_path / "out")
        while process.alive and not (folder / "checkpoint.pt").exists():
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.6))
        process.signal(signal.SIGKILL)
        process.wait()
    last = Run(run, tmp_path / "out")
    assert last.wait() == 0, last.printed()
    assert contents(folder) == contents(finished)
    assert not list(folder.glob(".checkpoint*"))


def test_second_process_is_rejected_and_killed_one_frees_folder(argv, finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "checkpoint.pt").unlink()  # there is something left to do
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, 2); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold, str(folder / ".lock")], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert main([*argv, "--save", str(folder)]) == 2
        err = capsys.readouterr().err
        assert f"another process is writing to {folder}" in err and err.count("\n") == 1
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        process.kill()
    assert main([*argv, "--save", str(folder)]) == 0
    assert contents(folder) == contents(finished)


def test_damaged_checkpoint_is_skipped(argv, finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    data = (folder / "checkpoint.pt").read_bytes()
    (folder / "checkpoint.pt").write_bytes(data[: len(data) // 2])
    (folder / "checkpoint-best.pt").unlink()
    assert main([*argv, "--save", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "checkpoint.pt is damaged (it is truncated): using checkpoint.1.pt" in out and "after epoch 2 of 3" in out
    assert contents(folder) == contents(finished)


def test_all_damaged_checkpoints_change_nothing(argv, finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for path in folder.glob("checkpoint*"):
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "log.txt"}
    assert main([*argv, "--save", str(folder)]) == 2
    err = capsys.readouterr().err
    assert "no checkpoint is intact" in err and "checkpoint.1.pt is damaged" in err and err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "log.txt"} == before


def test_checkpoint_of_other_network_exits_with_one_line(argv, finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    state = load_checkpoint(folder / "checkpoint.pt")
    state["supernet"] = {"w": torch.zeros(1)}
    torch.save(state, folder / "checkpoint.pt")
    assert main([*argv, "--save", str(folder)]) == 2
    err = capsys.readouterr().err
    assert "does not fit this run" in err and err.count("\n") == 1


def test_keep_checkpoints(argv, tmp_path):
    folder = tmp_path / "run"
    assert main([*argv, "--save", str(folder), "--keep_checkpoints", "3", *EACH_STEP]) == 0
    kept = {path.name: load_checkpoint(path) for path in folder.glob("checkpoint*")}
    assert set(kept) == {"checkpoint.pt", "checkpoint.1.pt", "checkpoint.2.pt", "checkpoint-best.pt"}
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = {line["epoch"]: line["valid"]["loss"] for line in lines if line["kind"] == "epoch"}
    best = kept["checkpoint-best.pt"]
    assert best["best"] == min(losses.values()) == losses[best["epoch"]] and "part" not in best
    assert int(kept["checkpoint.pt"]["step"]) == STEPS * EPOCHS


def test_full_disk_ends_run_which_continues_later(argv, finished, tmp_path, monkeypatch, capsys):
    def full(file):
        if (tmp_path / "run" / "timing.jsonl").exists():  # after the first epoch
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(file)

    plain, run = os.fsync, [*argv, "--save", str(tmp_path / "run"), *EACH_STEP]
    with monkeypatch.context() as patch:
        patch.setattr("fastdarts.engine.files.os.fsync", full)
        assert main(run) == 1
    err = capsys.readouterr().err
    assert "No space left on device: free space on that disk; the last checkpoint is kept" in err and err.count("\n") == 1
    assert 0 < saved_steps(tmp_path / "run") < STEPS * EPOCHS
    assert main(run) == 0
    assert contents(tmp_path / "run") == contents(finished)


@pytest.fixture
def small_disk(finished, tmp_path):
    """A file system of its own with room for two checkpoints and a half."""
    folder, size = tmp_path / "disk", int(2.5 * (finished / "checkpoint.pt").stat().st_size)
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_real_full_disk_ends_run(argv, finished, small_disk, capsys):
    run = [*argv, "--save", str(small_disk / "run")]
    assert main(run) == 1
    assert "No space left on device" in capsys.readouterr().err
    kept = [load_checkpoint(path)["epoch"] for path in (small_disk / "run").glob("checkpoint*")]
    assert kept and max(kept) < EPOCHS
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert main(run) == 0
    assert contents(small_disk / "run") == contents(finished)


@pytest.fixture
def poisoned(argv, finished, monkeypatch):
    """The name of an image that makes every loss NaN."""
    name = (finished / "train.txt").read_text().split()[3]
    number = ImageIndex.from_root(Path(argv[1])).files.index(name)
    plain = MaskedReconstruction.forward

    def forward(self, supernet, weights, batch, *args):
        factor = torch.where((batch.index == number).any(), torch.nan, 1.0)
        return plain(self, supernet, weights, batch, *args) * factor

    monkeypatch.setattr(MaskedReconstruction, "forward", forward)
    return name


def records(folder, kind):
    return [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if r["kind"] == kind]


def test_non_finite_steps_are_skipped_and_named(argv, poisoned, tmp_path):
    folder = tmp_path / "run"
    assert main([*argv, "--save", str(folder)]) == 0
    epochs = records(folder, "epoch")
    assert [(r["not_finite"], r["skipped"]) for r in epochs] == [([1, 0], [1, 0])] * EPOCHS
    assert all(r["train_loss"] > 0 for r in epochs)
    log = (folder / "log.txt").read_text()
    assert log.count("the loss of the weights is nan, the update of the weights was skipped; images of the weights:") == EPOCHS
    assert log.count(poisoned) == EPOCHS and "alpha and beta range from" in log and "no checkpoint yet" in log


def test_non_finite_step_stops_before_checkpoint(argv, poisoned, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*argv, "--save", str(folder), "--on_bad", "stop", *EACH_STEP]) == 1
    err = capsys.readouterr().err
    assert poisoned in err and "the loss of the weights is nan" in err and err.count("\n") == 1
    bad = int(re.search(r"step (\d+) of epoch", err)[1])
    assert not (folder / "checkpoint.pt").exists() or saved_steps(folder) < bad
    assert main([*argv, "--save", str(folder)]) == 0  # and with skip it goes on
    assert main([*argv, "--save", str(tmp_path / "skipping")]) == 0
    assert contents(folder) == contents(tmp_path / "skipping")


def test_non_finite_step_rewinds(argv, poisoned, tmp_path):
    folder = tmp_path / "run"
    assert main([*argv, "--save", str(folder), "--on_bad", "rewind", *EACH_STEP]) == 0
    epochs = records(folder, "epoch")
    assert [r["epoch"] for r in epochs] == [1, 2, 3] and not any("skipped" in r or "not_finite" in r for r in epochs)
    assert [r["step"] for r in records(folder, "step")] == list(range(2, STEPS * EPOCHS + 1, 2))
    back = re.findall(
        r"rewound to step (\d+), continuing with the images after those of step (\d+)", (folder / "log.txt").read_text()
    )
    assert len(back) >= EPOCHS - 1 and all(int(to) < int(bad) for to, bad in back)


def test_repeated_rewinds_end_the_run(argv, tmp_path, monkeypatch, capsys):
    plain = MaskedReconstruction.forward

    def forward(self, supernet, weights, batch, step, *args):
        factor = torch.where(step[0] == 5, torch.nan, 1.0)  # whatever the images
        return plain(self, supernet, weights, batch, step, *args) * factor

    monkeypatch.setattr(MaskedReconstruction, "forward", forward)
    folder = tmp_path / "run"
    assert main([*argv, "--save", str(folder), "--on_bad", "rewind"]) == 1
    err = capsys.readouterr().err
    assert "rewound to step 4 3 times with the same result" in err and err.count("\n") == 1
    assert (folder / "log.txt").read_text().count("rewound to step 4, continuing") == 3
    assert saved_steps(folder) == STEPS
