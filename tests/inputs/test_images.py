"""The sizes of a search's images: where they come from, and that a continued run has them too."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdarts.data import DataError
from fastdarts.engine import RunFolder, RunFolderError
from fastdarts.inputs.images import ImageArrays, ImageFiles, Images
from fastdarts.report.run import read_run
from fastdarts.settings import SearchCifarSettings, SearchImagenetSettings


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


def test_sizes_are_by_number_and_zero_elsewhere(settings: SearchImagenetSettings) -> None:
    images = choose(settings)
    assert images.sizes is None and len(images.train) == len(images.val) == 4
    Path(images.index.path(int(images.train[1]))).write_bytes(b"")
    checked = images.ready(settings, 2, False)
    assert len(checked.train) == 3 and len(checked.excluded) == 1
    assert checked.sizes.equal(expected(checked)) and checked.sizes.any(1).sum() == 7


def test_continued_run_takes_sizes_from_store(settings: SearchImagenetSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = choose(settings).ready(settings, 2, False)
    again = choose(settings, checked)
    assert again.sizes is None
    monkeypatch.setattr(Image, "open", lambda file: pytest.fail(f"{file} was opened"))
    assert again.ready(settings, 2, True).sizes.equal(checked.sizes)


def test_sizes_are_read_from_headers_without_store(settings: SearchImagenetSettings, tmp_path: Path, monkeypatch) -> None:
    checked = choose(settings).ready(settings, 2, False)
    again = choose(settings, checked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert again.ready(settings, 2, True).sizes.equal(checked.sizes)
    name = again.index.path(int(again.val[0]))
    Path(name).unlink()
    with pytest.raises(DataError, match="No such file") as caught:
        again.ready(settings, 2, True)
    assert name in str(caught.value)


def begun(settings: SearchImagenetSettings | SearchCifarSettings, images: Images) -> RunFolder:
    """The folder of a run that began with these images."""
    folder = RunFolder(Path(settings.save))
    images.write(folder)
    folder.create({"settings": asdict(settings), "data": images.facts()})
    return folder


def continued(settings: SearchImagenetSettings | SearchCifarSettings, kind: type[Images] = ImageFiles) -> Images:
    return kind.choose(settings, RunFolder.open(Path(settings.save), settings))


def test_moved_images_are_accepted(settings: SearchImagenetSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    checked = choose(settings).ready(settings, 2, False)
    begun(settings, checked)
    assert continued(settings).train.equal(checked.train) and "started" not in caplog.text
    shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    there = replace(settings, data=str(tmp_path / "elsewhere"))
    again = continued(there)
    assert again.train.equal(checked.train) and again.val.equal(checked.val)
    assert again.ready(settings, 2, True).sizes.equal(checked.sizes)
    assert f"images are now in {tmp_path}/elsewhere, unchanged; they were in {tmp_path}/images when it started" in caplog.text


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes() + b"\0"),
            r"same file names, but different sizes: \d+ bytes then",
        ),
        (lambda path: path.rename(path.with_name("x.JPEG")), "16 then, 16 now, without train/class"),
        (lambda path: path.unlink(), "16 then, 15 now, without train/class"),
        (lambda path: shutil.copy(path, path.with_name("x.JPEG")), "16 then, 17 now"),
    ],
)
def test_other_images_elsewhere_are_rejected(
    harm: Callable[[Path], object], says: str, settings: SearchImagenetSettings, tmp_path: Path
) -> None:
    checked = choose(settings).ready(settings, 2, False)
    begun(settings, checked)
    shutil.copytree(tmp_path / "images", tmp_path / "elsewhere")
    harm(tmp_path / "elsewhere" / checked.index.files[int(checked.val[2])])
    with pytest.raises(RunFolderError, match=f"elsewhere are not those that .* started with .{says}"):
        continued(replace(settings, data=str(tmp_path / "elsewhere")))


def test_run_without_sizes_continues_only_in_original_folder(settings: SearchImagenetSettings, tmp_path: Path) -> None:
    folder = begun(settings, choose(settings).ready(settings, 2, False))
    facts = json.loads(folder["settings.json"].read_text())
    del facts["data"]["bytes"], facts["data"]["bytes_sha256"]
    folder.create(facts)
    continued(settings)
    shutil.copytree(tmp_path / "images", tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match=f"recorded no file sizes.* can be used: {tmp_path}/images"):
        continued(replace(settings, data=str(tmp_path / "elsewhere")))


def test_moved_lists_are_compared(settings: SearchImagenetSettings, tmp_path: Path) -> None:
    """Also where a file of theirs was left out."""
    drawn = choose(settings)
    begun(replace(settings, save=str(tmp_path / "lists")), drawn)
    lists = {f"{part}_list": str(tmp_path / f"lists/{part}.txt") for part in ("train", "val")}
    settings = replace(settings, **lists)
    Path(drawn.index.path(int(drawn.train[1]))).write_bytes(b"")
    checked = choose(settings).ready(settings, 2, False)
    begun(settings, checked)
    shutil.copytree(tmp_path / "lists", tmp_path / "copies")
    copies = {name: path.replace("/lists/", "/copies/") for name, path in lists.items()}
    assert continued(replace(settings, **copies)).train.equal(checked.train)
    lines = Path(copies["val_list"]).read_text().splitlines()
    Path(copies["val_list"]).write_text("\n".join(lines[1:]))
    with pytest.raises(RunFolderError, match=f"--val_list .*copies/val.txt differs from .*lists/val.txt.* in {lines[0]}: give"):
        continued(replace(settings, **copies))


def test_any_file_name_in_lists_log_and_report(
    settings: SearchImagenetSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = os.fsencode(tmp_path / "images/train/class0") + b"/"
    odd = [b"a\n0.JPEG", b"\xe9.JPEG", b"a\r.JPEG", b" b.JPEG", b'"c".JPEG', b"bad\n\xff.JPEG"]
    for number, name in enumerate(odd):
        os.rename(folder + b"%d.JPEG" % number, folder + name)
    os.rename(tmp_path / "images/train/class1", os.fsencode(tmp_path / "images/train") + b"/class\xff\n")
    open(folder + odd[-1], "wb").close()
    settings = replace(settings, train_fraction=0.5, val_fraction=0.5, save=os.fsdecode(bytes(tmp_path) + b"/run\xe9"))
    checked = choose(settings).ready(settings, 2, False)
    run = begun(settings, checked)
    again = continued(settings)
    assert again.train.equal(checked.train) and again.val.equal(checked.val) and len(checked.train) + len(checked.val) == 15
    (line,) = run["excluded.txt"].read_text().splitlines()
    assert line == '"train/class0/bad\\n\\udcff.JPEG"\tempty file'
    assert f"excluded: {line.partition(chr(9))[0]}: empty file" in caplog.text
    run["metrics.jsonl"].write_text('{"kind": "epoch", "epoch": 1}\n')
    assert read_run(run.path).excluded == [line]


def test_moved_image_file_is_accepted(tmp_path: Path) -> None:
    pixels = np.arange(8 * 16 * 16 * 3, dtype=np.uint8).reshape(8, 16, 16, 3)
    for name, images in (("a", pixels), ("same", pixels), ("other", 255 - pixels)):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(8) % 2)
    settings = SearchCifarSettings(data=str(tmp_path / "a.npz"), save=str(tmp_path / "run"), threads=1)
    images = ImageArrays.choose(settings, RunFolder(Path(settings.save)))
    begun(settings, images)
    assert continued(replace(settings, data=str(tmp_path / "same.npz")), ImageArrays).val.equal(images.val)
    with pytest.raises(RunFolderError, match=r"other.npz are not those that .* started with \(8 then, 8 now\)"):
        continued(replace(settings, data=str(tmp_path / "other.npz")), ImageArrays)
