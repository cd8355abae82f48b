"""Tiny searches by the command in processes of their own, to be stopped and killed at any moment.

A fork server that has imported torch starts them, so that one takes a second and not five.
"""

import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from PIL import Image

from fastdarts import steps
from fastdarts.runs import plan_search

FLAGS = "--image_size 32 --batch_size 4 --layers 3 --init_channels 4 --workers 0 --log_every 2 --eval_every 1"
TINY = FLAGS.split()
SPLIT = ["--train_fraction", "0.5", "--val_fraction", "0.5"]
SAME = ("metrics.jsonl", "genotype.json", "train.txt", "val.txt")  # bytes that a run and its repetition share

GRACE = 1.0  # seconds, before it looks
KILLED = 30.0  # seconds after which torchrun kills a rank that does not end
Hook = Callable[[], None]
_planned: dict[tuple[Any, str], int] = {}  # peak bytes by the counter and all that it is given
servers = multiprocessing.get_context("forkserver")
servers.set_forkserver_preload(["fastdarts.search_imagenet", "fastdarts.retrain", "torchvision.transforms.v2.functional"])


def hasten(patch: pytest.MonkeyPatch) -> None:
    """Let searches draw no report, and plan the memory of the same settings once: both take longer than all the rest."""
    for report in ("search.write_report", "retrain.write_retrain_report"):
        patch.setattr(f"fastdarts.runs.{report}", lambda folder: None)
    plain = plan_search._stage_memory

    def planned(resolved: Any, images: Any, world: Any, space: Any, stage: Any) -> int:
        settings = {name: value for name, value in asdict(resolved.settings).items() if name != "save"}
        key = steps.step_bytes, repr((settings, len(images.index.classes), world.size, space, stage))
        if key not in _planned:
            _planned[key] = plain(resolved, images, world, space, stage)
        return _planned[key]

    patch.setattr(plan_search, "_stage_memory", planned)


def write_tree(root: Path, classes: int = 2, images: int = 8, side: int = 40) -> Path:
    """ROOT/train/CLASS/*.JPEG: gradients of a few colours."""
    for c in range(classes):
        folder = root / "train" / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(images):
            ramp = np.linspace(0, 255, side, dtype=np.uint8)
            picture = np.stack([np.broadcast_to(np.roll(ramp, 5 * i + 9 * ch + c), (side, side)) for ch in range(3)], -1)
            Image.fromarray(np.ascontiguousarray(picture)).save(folder / f"{i}.JPEG")
    return root


class Run:
    """`python -m fastdarts.COMMAND ARGV` as a process; what it prints goes to `output`."""

    command = "search_imagenet"

    def __init__(
        self, argv: list[str], output: Path, hook: Hook | None = None, environment: dict[str, str] | None = None
    ) -> None:
        """hook: called in the process before the command."""
        self.output = output
        self._process = servers.Process(target=_enter, args=(self.command, argv, str(output), hook, environment or {}))
        self._process.start()

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self._process.is_alive():
            os.kill(self._process.pid, number)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit status, negative the signal that killed it. Raises TimeoutError."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"the search did not end: {self.printed()}")
        return self._process.exitcode

    def printed(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ranks:
    """Two Runs that search together, and what torchrun does for them.

    It keeps the store where they meet, and when one fails asks the others to end, and kills them if they do not.
    """

    def __init__(self, argv: list[str], output: Path, hook: Hook | None = None) -> None:
        self.output = output
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self._store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
        seats = [{"RANK": r, "LOCAL_RANK": r, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2} | meeting for r in range(2)]
        self._runs = [Run(argv, output, hook, {name: str(value) for name, value in seat.items()}) for seat in seats]

    def signal(self, number: int) -> None:
        """Send it to one rank, any of them."""
        random.choice(self._runs).signal(number)

    @property
    def pid(self) -> int:
        return random.choice(self._runs).pid

    @property
    def alive(self) -> bool:
        return all(run.alive for run in self._runs)

    def wait(self, seconds: float = 120.0) -> int:
        """0 if all ranks end with it, else the status that says most: of a rank that was killed, not 1 of those that lost it.

        Raises TimeoutError.
        """
        deadline, failed, killed = time.monotonic() + seconds, 0, None
        while any(run.alive for run in self._runs):
            if not failed and self._failed():
                time.sleep(GRACE)  # the one that is the cause may be slower than those that lost it
                failed, killed = self._failed(), time.monotonic() + KILLED
                for run in self._runs:
                    run.signal(signal.SIGTERM)
            if time.monotonic() > min(deadline, killed or deadline):
                for run in self._runs:
                    run.signal(signal.SIGKILL)
                if killed is None:
                    raise TimeoutError(f"the search did not end: {self.printed()}")
            time.sleep(0.01)
        return failed or self._failed()

    def _failed(self) -> int:
        statuses = [run.wait() for run in self._runs if not run.alive]
        return min(statuses, default=0) if min(statuses, default=0) < 0 else max(statuses, default=0)

    def printed(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


def _enter(command: str, argv: list[str], output: str, hook: Hook | None, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
    multiprocessing.set_start_method("fork", force=True)  # of its workers: as the command has it, not as this process
    hasten(pytest.MonkeyPatch())
    if hook is not None:
        hook()
    sys.exit(import_module(f"fastdarts.{command}").main(argv))


def contents(folder: Path) -> dict[str, Any]:
    """The bytes of a run's SAME files."""
    return {name: (folder / name).read_bytes() for name in SAME}
