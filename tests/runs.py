"""Tiny searches by the command in processes of their own, to be stopped and killed at any moment.

A fork server that has imported torch starts them, so that one takes a second and not five.
"""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FLAGS = "--image_size 32 --batch_size 4 --layers 3 --init_channels 4 --workers 0 --log_every 2 --eval_every 1"
TINY = FLAGS.split()
SPLIT = ["--train_fraction", "0.5", "--val_fraction", "0.5"]
SAME = ("metrics.jsonl", "genotype.json", "train.txt", "val.txt")  # bytes that a run and its repetition share

servers = multiprocessing.get_context("forkserver")
servers.set_forkserver_preload(["fastdarts.search_imagenet", "torchvision.transforms.v2.functional"])


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
    """`python -m fastdarts.search_imagenet ARGV` as a process; what it prints goes to `output`."""

    def __init__(self, argv: list[str], output: Path) -> None:
        self.output = output
        self._process = servers.Process(target=_enter, args=(argv, str(output)))
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


def _enter(argv: list[str], output: str) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
    from fastdarts import session
    from fastdarts.search_imagenet import main

    multiprocessing.set_start_method("fork", force=True)  # of its workers: as the command has it, not as this process
    session.write_report = lambda folder: folder / "report.html"  # which takes longer than all the rest
    sys.exit(main(argv))


def contents(folder: Path) -> dict[str, Any]:
    """The bytes of a run's SAME files."""
    return {name: (folder / name).read_bytes() for name in SAME}
