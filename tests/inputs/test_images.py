"""The sizes of a search's images: where they come from, and that a continued run has them too."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdarts.data import DataError
from fastdarts.engine import RunFolder
from fastdarts.inputs.images import ImageFiles
from fastdarts.settings import SearchImagenetSettings


@pytest.fixture
def settings(tmp_path: Path) -> SearchImagenetSettings:
    """Of a search on 2 x 8 images, each of its own size, of which half are chosen."""
    for c in range(2):
        (tmp_path / f"images/train/class{c}").mkdir(parents=True)
        for i in range(8):
            path = tmp_path / f"images/train/class{c}/{i}.JPEG"
            Image.fromarray(np.full((20 + i, 30 + 2 * i + c, 3), 9 * i, np.uint8)).save(path)
            os.utime(path, (1e9, 1e9))
    options = {"train_fraction": 0.25, "val_fraction": 0.25, "save": str(tmp_path / "run")}
    return SearchImagenetSettings(data=str(tmp_path / "images"), **options)


def choose(settings: SearchImagenetSettings, written: ImageFiles | None = None) -> ImageFiles:
    """The images of a new run, or of the one that began with `written`."""
    folder = RunFolder(Path(settings.save))
    if written is not None:
        written.write(folder)
        folder.saved = {"data": written.facts()}
    return ImageFiles.choose(settings, folder)


def expected(images: ImageFiles) -> torch.Tensor:
    sizes = torch.zeros(len(images.index), 2, dtype=torch.int32)
    for i in torch.cat([images.train, images.val]).tolist():
        with Image.open(images.index.path(i)) as image:
            sizes[i] = torch.tensor([image.height, image.width])
    return sizes


def test_sizes_stand_by_number_and_are_zero_elsewhere(settings: SearchImagenetSettings) -> None:
    images = choose(settings)
    assert images.sizes is None and len(images.train) == len(images.val) == 4
    Path(images.index.path(int(images.train[1]))).write_bytes(b"")
    checked = images.checked(2)
    assert len(checked.train) == 3 and len(checked.excluded) == 1
    assert checked.sizes.equal(expected(checked)) and checked.sizes.any(1).sum() == 7
    assert checked.measured(2) is checked


def test_a_continued_run_has_remembered_sizes_without_opening_a_file(
    settings: SearchImagenetSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = choose(settings).checked(2)
    again = choose(settings, checked)
    assert again.sizes is None
    monkeypatch.setattr(Image, "open", lambda file: pytest.fail(f"{file} was opened"))
    assert again.measured(2).sizes.equal(checked.sizes)


def test_without_the_store_it_reads_headers(settings: SearchImagenetSettings, tmp_path: Path, monkeypatch) -> None:
    checked = choose(settings).checked(2)
    again = choose(settings, checked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert again.measured(2).sizes.equal(checked.sizes)
    name = again.index.path(int(again.val[0]))
    Path(name).unlink()
    with pytest.raises(DataError, match="No such file") as caught:
        again.measured(2)
    assert name in str(caught.value)
