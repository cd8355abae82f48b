"""Verification: bad files with reasons, sizes of good ones, agreement with the loaders' reader."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdarts.data import DataError, ImageIndex, image_sizes, verify
from fastdarts.data.decode import read_rgb
from tests.data.encodings import encoded, encodings

Tree = Callable[..., Path]
Nobody = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Smooth, 240 x 180, RGB."""
    y, x = np.mgrid[0:180, 0:240] / 40
    return Image.fromarray((127 * (1 + np.stack((np.sin(x), np.cos(x + y), np.sin(x * y)), -1))).astype(np.uint8))


def test_good_and_bad_files_are_separated(tree: Tree, photo: Image.Image) -> None:
    root = tree(a=3)
    folder = root / "train/a"
    good = {f"{name}.JPEG": data for name, data in encodings(photo).items()}
    bad = {
        "zempty.JPEG": (b"", "empty file"),
        "zhalf.JPEG": (encoded(photo)[:2000], "truncated"),
        "zhtml.JPEG": (b"<html>Not found</html>", "not an image"),
        "zpng.png": (encoded(photo, format="PNG")[:3000], "truncated"),
        "zgif.JPEG": (encoded(photo.quantize(), format="GIF")[:2000], "truncated"),
        "ztiff.JPEG": (encoded(photo, format="TIFF")[:2000], ""),
        "zwebp.JPEG": (encoded(photo, format="WEBP")[:500], ""),
        "zheader.JPEG": (encoded(photo)[:10], ""),
    }
    for name, data in good.items() | {name: data for name, (data, _) in bad.items()}.items():
        (folder / name).write_bytes(data)
    index = ImageIndex.from_root(root)
    seen = []
    kept, sizes, faults = verify(index, torch.arange(len(index)), 2, lambda done, total: seen.append((done, total)))
    assert [name for name, _ in faults] == [f"train/a/{name}" for name in sorted(bad)]
    for name, reason in faults:
        assert bad[Path(name).name][1] in reason and reason and "\n" not in reason
        with pytest.raises(DataError, match=f"cannot decode .*{name}"):
            read_rgb(str(root / name))
    assert {Path(index.files[i]).name for i in kept.tolist()} == good.keys() | {f"a_{i}.JPEG" for i in range(3)}
    assert seen[-1] == (len(index), len(index))
    assert sizes.dtype == torch.int32 and sizes.tolist() == [list(read_rgb(index.path(i)).size[::-1]) for i in kept.tolist()]
    assert image_sizes(index, kept, 2).equal(sizes)
    with pytest.raises(DataError, match=r"cannot decode .*zempty\.JPEG: empty file"):
        image_sizes(index, torch.arange(len(index)), 2)


def test_result_does_not_depend_on_workers(tree: Tree) -> None:
    root = tree(a=600)
    for i in range(0, 600, 7):
        (root / f"train/a/a_{i}.JPEG").write_bytes(b"")
    index = ImageIndex.from_root(root)
    backwards = torch.arange(600).flip(0)
    one, four = verify(index, backwards, 1), verify(index, backwards, 4)
    assert one.good.equal(four.good) and one.sizes.equal(four.sizes) and one.bad == four.bad and len(one.bad) == 86
    assert one.good.equal(one.good.sort(descending=True).values)
    first = Image.open(index.path(int(one.good[0])))
    assert one.sizes[0].tolist() == [first.height, first.width]
    none = verify(index, backwards[:0], 2)
    assert none.good.shape == (0,) and none.sizes.shape == (0, 2) and not none.bad


@pytest.mark.slow
def test_non_files_are_named_without_blocking(tree: Tree) -> None:
    """In a process of its own, which would be ended if it hung."""
    root = tree(a=2)
    folder = root / "train/a"
    (folder / "folder.JPEG").mkdir()
    os.mkfifo(folder / "pipe.JPEG")
    (folder / "link_to_pipe.JPEG").symlink_to("pipe.JPEG")
    (folder / "endless.JPEG").symlink_to("/dev/zero")
    (folder / "terminal.JPEG").symlink_to("/dev/tty")
    (folder / "broken.JPEG").symlink_to("nowhere.JPEG")
    (folder / "circle.JPEG").symlink_to("circle.JPEG")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(folder)  # a socket's name must be short
        try:
            server.bind("socket.JPEG")
        finally:
            os.chdir(here)
    program = (
        "import sys, torch; from fastdarts.data import ImageIndex, verify; index = ImageIndex.from_root(sys.argv[1]);"
        "good, sizes, bad = verify(index, torch.arange(len(index)), 2); print(len(good), len(sizes), dict(bad))"
    )
    command = [sys.executable, "-c", program, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    expected = {
        "broken": "a broken link",
        "circle": "Too many levels of symbolic links",
        "endless": "a device, not a file",
        "folder": "a folder, not a file",
        "link_to_pipe": "a pipe, not a file",
        "pipe": "a pipe, not a file",
        "socket": "a socket, not a file",
        "terminal": "a device, not a file",
    }
    assert done.stdout.strip() == f"2 2 { ({f'train/a/{name}.JPEG': why for name, why in expected.items()}) }", done.stderr
    assert not done.stderr


def test_unreadable_files_are_bad(public: Path, nobody: Nobody, photo: Image.Image) -> None:
    for name in ("a/a.JPEG", "a/b.JPEG", "b/c.JPEG"):
        path = public / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo))
    (public / "train/a/b.JPEG").chmod(0)
    index = ImageIndex.from_root(public)
    (public / "train/b").chmod(0)
    with nobody():
        good, sizes, bad = verify(index, torch.arange(3), 1)
    assert good.tolist() == [0] and sizes.tolist() == [[180, 240]]
    assert bad == [("train/a/b.JPEG", "Permission denied"), ("train/b/c.JPEG", "Permission denied")]


def test_missing_files_and_disk_errors_are_reported(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(a=4)
    index = ImageIndex.from_root(root)
    (root / "train/a/a_1.JPEG").unlink()
    real = Image.open

    def failing(file: Any) -> Image.Image:
        if file.name.endswith("a_2.JPEG"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(file)

    monkeypatch.setattr(Image, "open", failing)
    good, _, bad = verify(index, torch.arange(4), 2)
    assert good.tolist() == [0, 3]
    assert bad == [("train/a/a_1.JPEG", "No such file or directory"), ("train/a/a_2.JPEG", "Input/output error")]


def test_caller_error_ends_check_cleanly(tree: Tree) -> None:
    """The threads end, and Python's filters of warnings are as they were."""
    import threading
    import warnings

    index = ImageIndex.from_root(tree(a=300))
    before = list(warnings.filters)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(index, torch.arange(300), 3, stop)
    assert threading.active_count() == 1 and warnings.filters == before
    with pytest.raises(KeyboardInterrupt):
        verify(index, torch.arange(300), 3, stop)


def test_real_unusual_files_are_verified(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/odd").symlink_to((shared_data / "imagenet_sample/odd").resolve())
    index = ImageIndex.from_root(tmp_path)
    good, sizes, bad = verify(index, torch.arange(len(index)), 2)
    assert len(good) == 33 and not bad
    assert sizes.tolist() == [list(read_rgb(index.path(i)).size[::-1]) for i in good.tolist()]
