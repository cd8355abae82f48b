"""Small folders of images, made for each test."""

import multiprocessing.queues  # noqa: F401  (imported late otherwise, when `nobody` may not read Python itself)
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
from PIL import Image

from fastdarts.data import sample_root


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Smooth colours with some noise, RGB."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    pixels = np.stack([np.sin(5 * x + seed), np.cos(7 * y), np.sin(3 * (x + y) - seed)], -1) * 100 + 128
    return Image.fromarray((pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8))


def settle(root: Path) -> None:
    """As if the files had been written a minute ago: a check does not trust what may still be changing."""
    for path in root.glob("*/*/*"):
        if path.is_file():
            then = path.stat().st_mtime_ns - 60 * 10**9
            os.utime(path, ns=(then, then))


def running() -> int:
    """Threads of this process, native ones too."""
    return len(os.listdir("/proc/self/task"))


def settles(threads: int) -> bool:
    """Whether only so many threads are left; one that was joined may be listed for a moment."""
    began = monotonic()
    while running() > threads and monotonic() - began < 10:
        sleep(0.01)
    return running() <= threads


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    """A function: (cat=3, dog=2) writes ROOT/train/cat/cat_0.JPEG, ... and returns ROOT."""

    def write(**classes: int) -> Path:
        for name, count in classes.items():
            folder = tmp_path / "train" / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(40 + 3 * (i % 20), 80 - 2 * (i % 20), i).save(folder / f"{name}_{i}.JPEG")
        return tmp_path

    return write


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ROOT of the generated sample, in a cache of its own."""
    return sample_root(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are for their owner."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def nobody() -> Callable[[], AbstractContextManager[None]]:
    """A context manager: inside, the user is one whom permissions bind, where this one is root."""

    @contextmanager
    def switch() -> Iterator[None]:
        user = os.geteuid()
        os.seteuid(user or 65534)
        try:
            yield
        finally:
            os.seteuid(user)

    return switch
