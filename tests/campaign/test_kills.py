"""Tiny searches that are killed, stopped and damaged again and again: what they end with, counted in a record.

Each trial disturbs one run several times and then lets it end. It must end with the bytes of the run that was left in peace,
or with a line that says what is wrong. Checkpoints are written beside the steps, so what a kill may cost is the one that was
being written and what came after it: at most two of these epochs, which are shorter than a write.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from bench.records import RESULTS, append, tagged
from fastdarts.engine.checkpoints import DamagedCheckpoint, load_checkpoint
from tests.support.runs import SPLIT, TINY, Ranks, Run, contents, write_tree

pytestmark = pytest.mark.campaign
STEPS, EPOCHS = 4, 6
SEEDS, KILLS = 3, 3  # trials of each kind, disturbances in each


class Started(Protocol):
    """A search that was started: `Run`, or what starts several ranks."""

    alive: bool

    def __init__(self, argv: list[str], output: Path) -> None: ...
    def signal(self, number: int) -> None: ...
    def wait(self, seconds: float = 120.0) -> int: ...
    def printed(self) -> str: ...

    @property
    def pid(self) -> int: ...


LAUNCHERS: dict[str, tuple[type[Started], list[str]]] = {  # with the flags of its own
    "one process": (Run, []),
    "two ranks": (Ranks, ["--image_size", "64", "--dist_timeout", "60"]),
}


class Trial:
    """One run folder and what happens to it."""

    def __init__(self, launcher: type[Started], argv: list[str], folder: Path, chance: random.Random) -> None:
        self.launcher, self.folder, self.chance = launcher, folder, chance
        self.argv = [*argv, "--save", str(folder), "--checkpoint_minutes", "1e-9"]
        self.kills, self.lost, self.damaged = 0, 0, False

    def start(self) -> Started:
        self.output = self.folder.with_suffix(f".{self.kills}.out")
        return self.launcher(self.argv, self.output)

    def ended(self, run: Started, *statuses: int) -> None:
        """The run ends with one of these, without a traceback, its checkpoint not far behind what it has logged."""
        status = run.wait()
        assert status in statuses, run.printed()
        assert "Traceback" not in run.printed(), run.printed()
        self.kills += 1
        if (self.folder / "checkpoint.pt").exists():
            try:
                at = int(load_checkpoint(self.folder / "checkpoint.pt")["step"])
            except DamagedCheckpoint:
                if not self.damaged:  # a kill alone damages none
                    raise
                return
            self.damaged = False
            metrics = self.folder / "metrics.jsonl"  # its first line may come after the first checkpoint
            steps = [int(n) for n in re.findall(r'"step": (\d+)', metrics.read_text() if metrics.exists() else "")]
            self.lost = max(self.lost, max(steps, default=0) - at)
            assert self.lost <= 2 * STEPS

    def wait_for(self, run: Started, there: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while run.alive and not there() and time.monotonic() < deadline:
            time.sleep(0.001)

    def moment(self, run: Started) -> None:
        """Some moment of a run's life."""
        if self.chance.random() < 0.8:
            self.wait_for(run, (self.folder / "checkpoint.pt").exists)
        time.sleep(self.chance.uniform(0, 1.2))

    def damage(self, how: str, paths: list[Path]) -> None:
        for path in paths:
            data = bytearray(path.read_bytes())
            if how == "cut":
                del data[self.chance.randrange(len(data)) :]
            else:
                data[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)
            path.write_bytes(data)
        self.damaged = True


def kill(trial: Trial) -> None:
    run = trial.start()
    trial.moment(run)
    run.signal(signal.SIGKILL)
    trial.ended(run, -signal.SIGKILL, 0)


def kill_while_writing(trial: Trial) -> None:
    run = trial.start()
    trial.wait_for(run, lambda: (trial.folder / "metrics.jsonl").exists())
    time.sleep(trial.chance.uniform(0, 0.5))
    trial.wait_for(run, lambda: any(trial.folder.glob(".checkpoint*.tmp")))
    run.signal(signal.SIGKILL)
    trial.ended(run, -signal.SIGKILL, 0)


def stop(trial: Trial) -> None:
    number = trial.chance.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
    run = trial.start()
    trial.wait_for(run, lambda: "checked" in run.printed() or "cache" in run.printed())  # it minds signals by now
    trial.moment(run)
    run.signal(number)
    began = time.monotonic()
    trial.ended(run, 130 if number == signal.SIGINT else 75, 0)
    assert time.monotonic() - began < 20


def kill_and_damage(how: str) -> Callable[[Trial], None]:
    def disturb(trial: Trial) -> None:
        kill(trial)
        both = all((trial.folder / name).exists() for name in ("checkpoint.pt", "checkpoint.1.pt"))
        if both and not trial.damaged:  # a kill between two renames leaves the older one alone
            trial.damage(how, [trial.folder / "checkpoint.pt"])

    return disturb


def damage_all(trial: Trial) -> None:
    """It is refused with a line; then the run gets its checkpoints back."""
    kill(trial)
    paths = list(trial.folder.glob("checkpoint*.pt"))
    if not paths:
        return
    whole = {path: path.read_bytes() for path in paths}
    trial.damage("flip", paths)
    run = trial.start()
    assert run.wait() == 2 and "no checkpoint is intact" in run.printed()
    for path, data in whole.items():
        path.write_bytes(data)
    trial.damaged = False


def kill_a_worker(trial: Trial) -> None:
    """One of the processes that decode."""
    trial.argv += ["--cache", "off", "--workers", "1"]
    run = trial.start()
    trial.moment(run)
    for worker in workers(run.pid)[:1]:
        os.kill(worker, signal.SIGKILL)
    trial.ended(run, 0, 1)
    if "has died" not in run.printed():  # none was there any more
        trial.kills -= 1


def workers(pid: int) -> list[int]:
    """The process' children but git."""
    try:
        children = [int(n) for task in Path(f"/proc/{pid}/task").iterdir() for n in (task / "children").read_text().split()]
        return [n for n in children if Path(f"/proc/{n}/comm").read_text().strip() != "git"]
    except OSError:  # it has ended
        return []


KINDS: dict[str, Callable[[Trial], None]] = {
    "SIGKILL": kill,
    "SIGKILL while a checkpoint is written": kill_while_writing,
    "stop signal": stop,
    "SIGKILL, newest checkpoint cut off": kill_and_damage("cut"),
    "SIGKILL, bit flipped in newest checkpoint": kill_and_damage("flip"),
    "SIGKILL, all checkpoints damaged": damage_all,
    "worker killed": kill_a_worker,
}


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Whether a file system of `size` bytes could be mounted at `folder`."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def fill_disk(launcher: type[Started], argv: list[str], folder: Path, chance: random.Random, size: int) -> Trial | None:
    """A run on a disk that is full after a while, until it gets room; None where no disk can be had."""
    with small_disk(folder, int(size * chance.uniform(1.2, 3.5))) as mounted:
        if not mounted:
            return None
        trial = Trial(launcher, argv, folder / "run", chance)
        run = trial.start()
        assert run.wait() == 1 and "No space left on device" in run.printed(), run.printed()
        trial.kills += 1
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        last = trial.start()
        assert last.wait() == 0, last.printed()
        shutil.copytree(trial.folder, folder.with_name("filled"))
    trial.folder = folder.with_name("filled")
    return trial


@pytest.mark.parametrize("name", LAUNCHERS)
def test_killed_runs_continue_bitwise_identically(name: str, tmp_path: Path) -> None:
    (launcher, flags), began = LAUNCHERS[name], time.monotonic()
    tree = write_tree(tmp_path / "images")
    epochs = ["--epochs", str(EPOCHS), "--begin", "1", "--threads", "1"]
    argv = ["--data", str(tree), *TINY, *SPLIT, "--batch_size", "2", *epochs, *flags]
    peace = Trial(launcher, argv, tmp_path / "peace", random.Random(0))
    assert peace.start().wait() == 0
    want = {False: contents(peace.folder)}
    files = Trial(launcher, [*argv, "--cache", "off"], tmp_path / "files", random.Random(0))
    assert files.start().wait() == 0
    want[True] = contents(files.folder)  # without the cache: other pixels
    kills, lost = Counter[str](), 0
    for kind, disturb in KINDS.items():
        for seed in range(SEEDS):
            trial = Trial(launcher, argv, tmp_path / f"{len(kills)}-{seed}", random.Random(f"{kind} {seed}"))
            for _ in range(KILLS):
                disturb(trial)
            last = trial.start()
            assert last.wait() == 0, (kind, seed, last.printed())
            assert contents(trial.folder) == want[kind == "worker killed"], (kind, seed)
            kills[kind] += trial.kills
            lost = max(lost, trial.lost)
    size = (peace.folder / "checkpoint.pt").stat().st_size
    for seed in range(SEEDS):
        shutil.rmtree(tmp_path / "filled", ignore_errors=True)
        full = fill_disk(launcher, argv, tmp_path / f"disk{seed}", random.Random(seed), size)
        if full is not None:
            assert contents(full.folder) == want[False]
            kills["full disk"] += full.kills
    figures = {"campaign": "kills", "launcher": name, "kills": sum(kills.values()), "by_kind": dict(kills)}
    figures |= {"ends": "bit-identical to the undisturbed run", "most_steps_lost": lost, "steps_an_epoch": STEPS}
    append(RESULTS / "campaign.jsonl", tagged(figures | {"seconds": round(time.monotonic() - began, 1)}))
    assert sum(kills.values()) >= 50, json.dumps(kills)
