"""DALI's own reader: the other loaders' order, labels and flips, boxes of its own, resuming, faults."""

import gc
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastdarts.batch import Batch
from fastdarts.data import DaliReaderLoader, DataError, FolderLoader, ImageIndex, InputStopped
from fastdarts.data import dali as dali_module
from fastdarts.data.crop import RATIO, middle
from fastdarts.data.dali_reader import _middles
from fastdarts.ops.philox import Stream
from tests.data.conftest import picture, running, settles

pytest.importorskip("nvidia.dali")
Tree = Callable[..., Path]


def settings(**changes: Any) -> dict[str, Any]:
    """Batches of 6 at 32 pixels."""
    return {"stream": Stream.TRAIN, "seed": 11, "batch_size": 6, "image_size": 32} | changes


def loader(index: ImageIndex, **changes: Any) -> DaliReaderLoader:
    return DaliReaderLoader(index, torch.arange(len(index)), threads=1, **settings(**changes))


def same(a: Batch, b: Batch) -> bool:
    return all(x.equal(y) for x, y in zip(a, b, strict=True))


def assert_same_but_pixels(a: Batch, b: Batch) -> None:
    assert all(getattr(a, name).equal(getattr(b, name)) for name in ("labels", "index", "flip"))
    assert all(x.dtype == y.dtype and x.shape == y.shape for x, y in zip(a, b, strict=True))


def test_order_labels_and_flips(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    index = ImageIndex.from_root(tree(a=8, b=6))
    caplog.set_level(logging.INFO)
    with loader(index) as ours, FolderLoader(index, torch.arange(14), workers=0, **settings()) as theirs:
        assert [record.message for record in caplog.records] == [
            "train images are read and cropped by DALI: boxes, and so pixels, differ from those of other loaders"
        ]
        for _ in range(5):
            a, b = next(ours), next(theirs)
            assert_same_but_pixels(a, b)
            assert not a.images.equal(b.images)


def test_names_that_dali_cannot_be_given_are_refused(tree: Tree) -> None:
    root = tree(a=8)
    folder = os.fsencode(root / "train/a")
    os.rename(folder + b"/a_0.JPEG", folder + b"/\xff.JPEG")
    with pytest.raises(DataError, match=r"no file names that are not UTF-8: .*udcff\.JPEG\"; take --loader dali or") as caught:
        loader(ImageIndex.from_root(root))
    str(caught.value).encode()
    os.rename(folder + b"/\xff.JPEG", folder + "/ä 日本.JPEG".encode())
    with loader(ImageIndex.from_root(root)) as named:
        next(named)


def test_each_image_is_that_of_its_index(tmp_path: Path) -> None:
    """Files of one colour each."""
    for i in range(12):
        path = tmp_path / f"train/{'ab'[i % 2]}/{i:02d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (20 * i, 255 - 20 * i, 7 * i)).save(path, quality=95)
    index = ImageIndex.from_root(tmp_path)
    with loader(index) as batches:
        for _ in range(4):
            batch = next(batches)
            for i, image in zip(batch.index.tolist(), batch.images, strict=True):
                number = int(Path(index.files[i]).stem)
                color = torch.tensor([20 * number, 255 - 20 * number, 7 * number])
                assert (image.int() - color).abs().max() <= 3


def test_boxes_are_as_large_as_asked(tmp_path: Path) -> None:
    """Of an image whose colour is the place: how much of each axis is seen."""
    (tmp_path / "train/a").mkdir(parents=True)
    ramp = Image.linear_gradient("L").resize((256, 256))
    for i in range(64):
        Image.merge("RGB", (ramp, ramp.rotate(90), ramp)).save(tmp_path / f"train/a/{i:02d}.JPEG", quality=95, subsampling=0)
    index = ImageIndex.from_root(tmp_path)
    with loader(index, batch_size=64, scale=(0.2, 0.4)) as batches:
        images = torch.cat([next(batches).images for _ in range(4)]).float()
    height = (images[..., 0].amax((1, 2)) - images[..., 0].amin((1, 2))) / 255
    width = (images[..., 1].amax((1, 2)) - images[..., 1].amin((1, 2))) / 255
    area, ratio = height * width, width / height
    assert 0.15 < area.min() < 0.22 and 0.35 < area.max() < 0.42  # a resized ramp ends a little before its ends
    assert RATIO[0] * 0.95 < ratio.min() < 0.85 and 1.15 < ratio.max() < RATIO[1] * 1.05


def test_cutting_whole_images_gives_the_same(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is done on a GPU, here on the CPU: to the bit."""
    index = ImageIndex.from_root(tree(a=8))
    with loader(index) as boxes:
        expected = next(boxes)
    monkeypatch.setattr(dali_module, "decodes_boxes", lambda device: False)
    with loader(index) as whole:
        assert same(next(whole), expected)


def test_centre_view(sample: Path) -> None:
    index = ImageIndex.from_root(sample)
    view = {"train": False, "image_size": 48}
    indices = torch.arange(0, 1000, 50)
    with DaliReaderLoader(index, indices, threads=1, **settings(**view)) as ours:
        a = next(ours)
    with FolderLoader(index, indices, workers=0, **settings(**view)) as theirs:
        b = next(theirs)
    assert_same_but_pixels(a, b)
    assert (a.images.int() - b.images.int()).abs().float().mean() < 2


def test_of_a_long_thin_image_the_middle_is_resized(tmp_path: Path) -> None:
    """As crop.middle has it; the centre is torchvision's."""
    sizes = [(640, 20), (20, 640), (40, 30), (8000, 1), (321, 20), (7, 113)]
    (tmp_path / "train/a").mkdir(parents=True)
    for i, size in enumerate(sizes):
        picture(*size, i).save(tmp_path / f"train/a/{i}.JPEG")
    files = [str(path) for path in sorted((tmp_path / "train/a").iterdir())]
    device = torch.device("cpu")

    def graph(fn: Any) -> tuple[Any, ...]:
        encoded, _ = fn.readers.file(files=files)
        return _middles(fn, fn.peek_image_shape(encoded, adjust_orientation=False))

    pipe = dali_module.pipeline(graph, len(sizes), 1, device)
    pipe.schedule_run()
    corners, shapes = (made.tolist() for made in dali_module.outputs(pipe, device))
    for (width, height), (top, left), (h, w) in zip(sizes, corners, shapes, strict=True):
        assert (left, top, left + w, top + h) == (middle(width, height) or (0, 0, width, height))
    index = ImageIndex.from_root(tmp_path)
    with (
        loader(index, train=False, image_size=16) as ours,
        FolderLoader(index, torch.arange(6), workers=0, **settings(train=False, image_size=16)) as theirs,
    ):
        a, b = next(ours), next(theirs)
    assert_same_but_pixels(a, b)
    assert (a.images.int() - b.images.int()).abs().float().mean((1, 2, 3)).max() < 12


def test_resuming_is_bit_identical(tree: Tree) -> None:
    """Three batches an epoch: from an epoch's start, from within it, and over its end."""
    index = ImageIndex.from_root(tree(a=11, b=8))
    with loader(index) as whole:
        expected = [next(whole) for _ in range(9)]
    for start in (3, 4, 8):
        with loader(index) as resumed:
            resumed.load_state_dict({"batch": start})
            for batch in expected[start:]:
                assert same(next(resumed), batch)
            assert resumed.state_dict() == {"batch": 9}


def test_ranks_share_a_batch_but_neither_they_nor_epochs_their_chance(tmp_path: Path) -> None:
    """All files alike, so that equal boxes would show."""
    (tmp_path / "train/a").mkdir(parents=True)
    for i in range(12):
        picture(60, 50, 0).save(tmp_path / f"train/a/{i:02d}.JPEG")
    index = ImageIndex.from_root(tmp_path)
    with loader(index) as whole, loader(index, rank=0, world_size=2) as one, loader(index, rank=1, world_size=2) as two:
        seen = []
        for _ in range(3):
            expected, parts = next(whole), (next(one), next(two))
            seen.append(expected.images)
            for name in ("labels", "index", "flip"):
                assert torch.stack([getattr(part, name) for part in parts], 1).flatten().equal(getattr(expected, name))
            assert not parts[0].images.equal(parts[1].images)
    assert not seen[0].equal(seen[2])  # the same place in the next epoch


@pytest.mark.parametrize("fault", ["truncated", "deleted", "empty"])
def test_a_file_that_breaks_later(fault: str, tree: Tree) -> None:
    """A DataError that names it, and all goes on when it is back."""
    root = tree(a=6)
    index = ImageIndex.from_root(root)
    path = root / "train/a/a_3.JPEG"
    data = path.read_bytes()
    with loader(index) as whole:
        expected = next(whole)
    path.unlink()
    if fault != "deleted":
        path.write_bytes(data[:700] if fault == "truncated" else b"")
    with loader(index) as batches:
        with pytest.raises(DataError, match=r"cannot decode .*a_3\.JPEG: "):
            next(batches)
        path.write_bytes(data)
        assert same(next(batches), expected)


def test_nothing_is_left_behind(tree: Tree) -> None:
    """Also where an epoch's pipeline has been followed by another."""
    index = ImageIndex.from_root(tree(a=6))
    with loader(index) as batches:
        next(batches)  # what starts once stays
    gc.collect()  # and what other tests left ends
    before = running()
    with loader(index) as batches:
        for _ in range(3):
            next(batches)
    assert settles(before)
    next(loader(index))
    gc.collect()
    assert settles(before)


def test_what_dali_cannot_decode_is_named(tree: Tree) -> None:
    root = tree(a=6)
    buffer = io.BytesIO()
    picture(40, 50, 0).quantize(20).save(buffer, format="GIF")
    (root / "train/a/a_3.JPEG").write_bytes(buffer.getvalue())
    says = r"DALI stopped: .* at .*a_3\.JPEG, which Pillow can decode; the torch"
    with loader(ImageIndex.from_root(root)) as batches, pytest.raises(InputStopped, match=says):
        next(batches)
