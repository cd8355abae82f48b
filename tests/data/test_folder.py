"""The torchvision route: order, ranks, resuming, pixels, errors."""

import builtins
import gc
import multiprocessing
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdarts.batch import Batch
from fastdarts.data import BatchSampler, DataError, EvalLoader, FolderLoader, ImageIndex, crop_box, crop_words, flips, verify
from fastdarts.data.prefetch import DEPTH
from fastdarts.data.sampler import shuffled
from fastdarts.data.view import View
from fastdarts.data.workers import Decoder
from fastdarts.ops.philox import Stream, philox4x32
from tests.data.conftest import picture

functional = pytest.importorskip("torchvision.transforms.v2.functional")
Tree = Callable[..., Path]


def loader(index: ImageIndex, **changes: Any) -> FolderLoader:
    """Batches of 6 at 32 pixels from all images."""
    settings = {"stream": Stream.TRAIN, "seed": 11, "batch_size": 6, "image_size": 32, "workers": 0} | changes
    return FolderLoader(index, torch.arange(len(index)), **settings)


def same(a: Batch, b: Batch) -> bool:
    return all(x.equal(y) for x, y in zip(a, b, strict=True))


def test_order_follows_random_words() -> None:
    """Against the counter written out: word 0 of (0, image, epoch, purpose ORDER 1 + 256 * stream VAL 1)."""
    images = [3, 4, 8, 15, 16, 23, 42]
    sampler = BatchSampler(torch.tensor(images[::-1]), stream=Stream.VAL, seed=9, batch_size=2)
    for epoch in (0, 5):
        words = {i: philox4x32(torch.tensor([0, i, epoch, 257]), 9)[0].item() for i in images}
        order = sorted(images, key=words.__getitem__)
        assert sampler.order(epoch).tolist() == order
        for part in range(3):  # the seventh image is left to other epochs
            number, batch = sampler.batch(3 * epoch + part)
            assert number == epoch and batch.tolist() == order[2 * part : 2 * part + 2]
    assert len(sampler) == 3


def test_order_is_new_permutation_each_epoch() -> None:
    indices = torch.arange(0, 500, 5)
    sampler = BatchSampler(indices, stream=Stream.TRAIN, seed=0, batch_size=10)
    orders = [sampler.order(epoch) for epoch in range(3)]
    assert all(order.sort().values.equal(indices) for order in orders)
    assert not orders[0].equal(orders[1]) and not orders[1].equal(orders[2]) and not orders[0].equal(indices)
    other = BatchSampler(indices, stream=Stream.TRAIN, seed=1, batch_size=10)
    assert not other.order(0).equal(orders[0])


def test_batches_do_not_depend_on_world_size(tree: Tree) -> None:
    index = ImageIndex.from_root(tree(a=7, b=6))
    whole = loader(index)
    ranks = [loader(index, rank=rank, world_size=3) for rank in range(3)]
    assert {len(part) for part in (whole, *ranks)} == {2}
    for _ in range(3):
        expected, parts = next(whole), [next(part) for part in ranks]
        for field, shares in zip(expected, zip(*parts, strict=True), strict=True):
            assert torch.stack(shares, 1).flatten(0, 1).equal(field)  # rank r has images r, r + 3, ...


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_bitwise_identical(workers: int, tree: Tree) -> None:
    index = ImageIndex.from_root(tree(a=7, b=6))
    whole = loader(index)
    expected = [next(whole) for _ in range(7)]
    with loader(index, workers=workers) as first:
        for batch in expected[:3]:
            assert same(next(first), batch)
        state = first.state_dict()
        assert state == {"batch": 3}  # whatever the workers have prepared
        next(first)
        first.load_state_dict(state)  # back by one
        assert same(next(first), expected[3])
    with loader(index, workers=2 - workers) as second:
        second.load_state_dict(state)
        for batch in expected[3:]:
            assert same(next(second), batch)
    assert same(next(loader(index, start=5)), expected[5])


def test_pixels_labels_and_flips_match_torchvision(tree: Tree) -> None:
    """Each image equals torchvision's resized crop of its box, unflipped, in uint8 NHWC."""
    index = ImageIndex.from_root(tree(a=5, b=4))
    batches = loader(index, seed=5)
    for epoch in range(2):
        batch = next(batches)
        assert batch.images.shape == (6, 32, 32, 3) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous() and batch.index.dtype == batch.labels.dtype == torch.int64
        assert batch.labels.equal(index.labels[batch.index])
        assert batch.flip.equal(flips(5, Stream.TRAIN, epoch, batch.index))
        words = crop_words(5, Stream.TRAIN, epoch, batch.index).tolist()
        for i, number in enumerate(batch.index.tolist()):
            image = Image.open(index.path(number)).convert("RGB")
            top, left, h, w = crop_box(words[i], image.width, image.height)
            theirs = functional.resized_crop(image, top, left, h, w, [32, 32], antialias=True)
            assert np.array_equal(batch.images[i].numpy(), np.asarray(theirs))


def test_scale_and_centre_view_match_torchvision(tree: Tree) -> None:
    index = ImageIndex.from_root(tree(a=6))
    narrow = next(loader(index, scale=(0.9, 1.0)))
    assert not narrow.images.equal(next(loader(index)).images)
    centre, again = (next(loader(index, train=False, start=start)) for start in (0, 1))
    assert not centre.flip.any() and not again.flip.any()
    assert centre.images[centre.index.argsort()].equal(again.images[again.index.argsort()])  # no chance in it
    assert not centre.index.equal(again.index)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_batches_match_torchvision(workers: int, tree: Tree) -> None:
    index = ImageIndex.from_root(tree(a=7, b=6))
    chosen = torch.tensor([12, 0, 3, 7, 5])
    order = shuffled(chosen.sort().values, Stream.EVAL).tolist()
    loader = EvalLoader(index, chosen, batch_size=2, image_size=28, workers=workers)
    for _ in range(2):
        batches = list(loader)
        assert [batch.index.tolist() for batch in batches] == [order[:2], order[2:4], order[4:]]
        assert len(loader) == 3 and not torch.cat([batch.flip for batch in batches]).any()
        image = Image.open(index.path(order[3])).convert("RGB")
        theirs = functional.center_crop(functional.resize(image, [32]), [28, 28])
        assert np.array_equal(batches[1].images[1].numpy(), np.asarray(theirs))
        assert batches[1].labels.tolist() == [number >= 7 for number in order[2:4]]
    ranks = [EvalLoader(index, chosen, batch_size=2, image_size=28, workers=0, rank=r, world_size=2) for r in range(2)]
    assert [[b.index.tolist() for b in part] for part in ranks] == [[[i] for i in order[::2]], [[i] for i in order[1::2]]]


def test_evaluation_batches_mix_classes(tree: Tree) -> None:
    """One order for every pass, independent of the input's order."""
    index = ImageIndex.from_root(tree(a=40, b=40))
    batches = EvalLoader(index, torch.arange(80), batch_size=20, image_size=28, workers=0).batches
    assert torch.cat(batches).sort().values.tolist() == list(range(80))
    assert all(5 <= int((part < 40).sum()) <= 15 for part in batches)
    again = EvalLoader(index, torch.arange(80).flip(0), batch_size=20, image_size=28, workers=0).batches
    assert all(map(torch.equal, batches, again))


@pytest.mark.parametrize("workers", [0, 2])
def test_file_damaged_later_is_named_and_loader_continues(workers: int, tree: Tree) -> None:
    """A DataError in this process, in one line, and the loader can go on when the file is back."""
    root = tree(a=6)
    index = ImageIndex.from_root(root)
    path = root / "train/a/a_3.JPEG"
    data = path.read_bytes()
    expected = next(loader(index))
    path.write_bytes(data[:900])
    evaluation = EvalLoader(index, torch.arange(6), batch_size=6, image_size=28, workers=workers)
    with loader(index, workers=workers) as batches:
        for attempt in (lambda: next(batches), lambda: list(evaluation)):
            with pytest.raises(DataError, match=r"cannot decode .*a_3\.JPEG: .*truncated") as caught:
                attempt()
            assert "\n" not in str(caught.value)
        path.write_bytes(data)
        assert same(next(batches), expected)


def replaced(path: Path, kind: str) -> None:
    """Something else takes the file's place."""
    path.unlink()
    if kind == "text":
        path.write_text("<html>Not found</html>")
    elif kind == "nothing":
        path.touch()
    elif kind == "broken link":
        path.symlink_to("nowhere.JPEG")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("gone", "No such file or directory"),
        ("text", "not an image"),
        ("nothing", "empty file"),
        ("broken link", "a broken link"),
        ("folder", "a folder, not a file"),
        ("pipe", "a pipe, not a file"),
        ("device", "a device, not a file"),
    ],
)
def test_file_replaced_after_check_is_named(kind: str, says: str, workers: int, tree: Tree) -> None:
    """Also while the run goes on: the file is named in one line, nothing hangs, no process is left."""
    index = ImageIndex.from_root(tree(a=6))
    assert not verify(index, torch.arange(6), 1).bad
    path = Path(index.path(3))
    evaluation = EvalLoader(index, torch.arange(6), batch_size=6, image_size=28, workers=workers)
    with loader(index) as batches:
        next(batches)
        replaced(path, kind)

        def go_on() -> None:
            for _ in range(DEPTH + 3):  # what was made ahead comes first
                next(batches)

        for attempt in (go_on, lambda: next(loader(index, workers=workers)), lambda: list(evaluation)):
            with pytest.raises(DataError) as caught:
                attempt()
            assert str(caught.value) == f"cannot decode {path}: {says}"
    gc.collect()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_file_made_unreadable_is_named(
    what: str, workers: int, public: Path, tree: Tree, nobody: Callable[[], AbstractContextManager[None]]
) -> None:
    tree(a=6).rename(public / "images")
    (public / "images").chmod(0o755)
    index = ImageIndex.from_root(public / "images")
    path = Path(index.path(3))
    with nobody():
        assert not verify(index, torch.arange(6), 1).bad
    (path if what == "file" else path.parent).chmod(0)
    with nobody(), loader(index, workers=workers) as batches, pytest.raises(DataError) as caught:
        next(batches)
    named = path if what == "file" else path.parent
    assert str(caught.value).startswith(f"cannot decode {named}") and str(caught.value).endswith(": Permission denied")


def test_invalid_batch_size_is_rejected(tree: Tree) -> None:
    index = ImageIndex.from_root(tree(a=6))
    assert len(loader(index)) == 1
    with pytest.raises(DataError, match=r"batch_size is 7 but the train split has 6 images: .* a split of more images"):
        loader(index, batch_size=7)
    with pytest.raises(DataError, match=r"the val split has 6 images: choose at most as many"):
        loader(index, batch_size=0, stream=Stream.VAL)
    with pytest.raises(DataError, match="batch_size 6 cannot be divided equally among 4 ranks"):
        loader(index, world_size=4)


def test_missing_torchvision_is_reported(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ImageIndex.from_root(tree(a=6))
    real = builtins.__import__

    def fail(error: Exception) -> None:
        def importing(name: str, *args: Any) -> Any:
            if name.startswith("torchvision"):
                raise error
            return real(name, *args)

        monkeypatch.setattr(builtins, "__import__", importing)

    fail(ModuleNotFoundError("No module named 'torchvision'"))
    with pytest.raises(DataError, match="torchvision is missing: pip install torchvision"):
        loader(index)
    fail(RuntimeError("operator torchvision::nms does not exist"))
    with pytest.raises(DataError, match="does not match torch"):
        EvalLoader(index, torch.arange(6), batch_size=2, image_size=28, workers=0)


def test_workers_end_and_random_state_is_unchanged(tree: Tree) -> None:
    index = ImageIndex.from_root(tree(a=6))
    before = torch.get_rng_state()
    batches = loader(index, workers=2)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not multiprocessing.active_children()
    forgotten = loader(index, workers=1)
    next(forgotten)
    del forgotten
    gc.collect()
    assert not multiprocessing.active_children()
    list(EvalLoader(index, torch.arange(6), batch_size=2, image_size=28, workers=1))
    assert not multiprocessing.active_children()
    assert torch.get_rng_state().equal(before)


def test_real_unusual_files_are_decoded(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/odd").symlink_to((shared_data / "imagenet_sample/odd").resolve())
    index = ImageIndex.from_root(tmp_path)
    with loader(index, batch_size=33, image_size=64, workers=2) as batches:
        batch = next(batches)
    assert batch.images.shape == (33, 64, 64, 3) and sorted(batch.index.tolist()) == list(range(33))
    gray = index.files.index("train/odd/n02692877_airship.JPEG")
    pixels = batch.images[batch.index == gray]
    assert pixels[..., 0].equal(pixels[..., 1]) and pixels[..., 1].equal(pixels[..., 2])


@pytest.mark.parametrize("size", [(640, 20), (20, 640)])
def test_long_thin_images_are_cut_before_resizing(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where whole pixels begin alike, it is the centre of the whole image resized, to the bit."""
    image, view = picture(*size, 1), View(16, 0, Stream.EVAL, False, (0.08, 1.0))
    expected = np.asarray(functional.center_crop(functional.resize(image, [18]), [16, 16]))
    resize, seen = functional.resize, []
    monkeypatch.setattr(functional, "resize", lambda image, size: seen.append(image.size) or resize(image, size))
    assert np.array_equal(np.asarray(Decoder(view).crop(image, [])), expected)
    assert seen == [tuple(min(side, 320) for side in size)]


@pytest.mark.parametrize("size", [(8000, 1), (1, 8000), (1, 1), (2, 33)])
def test_extreme_image_sizes_need_little_memory(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    resize, most = functional.resize, []

    def watched(image: Image.Image, size: list[int]) -> Image.Image:
        made = resize(image, size)
        most.append(made.width * made.height)
        return made

    monkeypatch.setattr(functional, "resize", watched)
    image = Image.new("RGB", size, (200, 30, 30))
    for train in (False, True):
        crop = Decoder(View(224, 0, Stream.EVAL, train, (0.08, 1.0))).crop(image, [2**31] * 40)
        assert crop.size == (224, 224) and crop.getpixel((100, 100)) == (200, 30, 30)
    assert all(pixels <= 16 * 256 * 256 for pixels in most)
