"""Images and input of a retraining: which train, which are held back, the test images, and the passes over them."""

import logging
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdarts.data import BatchSampler, DataError, EvalLoader, read_list, write_list
from fastdarts.engine import RankInfo, RunFolder, RunFolderError, World
from fastdarts.inputs.source import CIFAR, IMAGENET, statistics_of
from fastdarts.inputs.training import TrainingArrays, TrainingFiles, TrainingImages
from fastdarts.ops.philox import Stream
from fastdarts.registry import STATISTICS
from fastdarts.settings import ConfigError, RetrainSettings

Settings = RetrainSettings


class Rank(World):
    """One of two ranks without the other: both find and choose the same."""

    def __init__(self, rank: int) -> None:
        super().__init__(RankInfo(rank, 2, rank, 2))

    def on_rank_zero(self, work: Callable[[], Any], send: Callable[[Any], Any] = lambda result: result, **_: Any) -> Any:
        return work() if self.is_main else send(work())

    def on_all_ranks(self, work: Callable[[], Any]) -> Any:
        return work()


def save(path: Path, width: int, height: int, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    pixels = np.stack([np.broadcast_to(np.roll(ramp, 3 * shade + c), (height, width)) for c in range(3)], -1)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)


@pytest.fixture
def files(tmp_path: Path) -> Settings:
    """Of a retraining on 2 x 8 files, with 2 x 5 test files."""
    for split, count in (("train", 8), ("val", 5)):
        for c in range(2):
            for i in range(count):
                save(tmp_path / f"images/{split}/class{c}/{i}.png", 60 + 3 * i, 50 + i + 5 * c, i)
    return Settings(
        data=str(tmp_path / "images"),
        dataset="imagenet",
        save=str(tmp_path / "run"),
        image_size=32,
        batch_size=4,
        device="cpu",
        threads=1,
        workers=0,
    )


@pytest.fixture
def arrays(tmp_path: Path) -> Settings:
    """Of a retraining on 16 images in memory, with 7 test images."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 16), ("test", 7)):
        images = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(count) % 2)
    return Settings(data=str(tmp_path), save=str(tmp_path / "run"), image_size=16, batch_size=4, device="cpu", threads=1)


def choose(settings: Settings, kind: type[TrainingImages] = TrainingFiles) -> TrainingImages:
    return kind.choose(settings, RunFolder(Path(settings.save)))


def begin(settings: Settings, images: TrainingImages) -> None:
    """Start a run with these images."""
    folder = RunFolder(Path(settings.save))
    images.write(folder)
    folder.create({"settings": asdict(settings), "data": images.facts()})


def resume(settings: Settings, kind: type[TrainingImages] = TrainingFiles) -> TrainingImages:
    return kind.choose(settings, RunFolder.open(Path(settings.save), settings))


def same(a: TrainingImages, b: TrainingImages) -> bool:
    parts = (a.train, b.train), (a.val, b.val), (a.test.numbers, b.test.numbers)
    return all(x.equal(y) for x, y in parts) and a.index.files == b.index.files and a.test.index.files == b.test.index.files


# which images


def test_all_training_images_train_by_default(files: Settings) -> None:
    images = choose(files)
    assert images.train.tolist() == list(range(16)) and not len(images.val) and images.classes == ("class0", "class1")
    assert images.test.numbers.tolist() == list(range(10)) and images.test.index.files[9] == "val/class1/4.png"
    facts = images.facts()
    assert (facts["train_images"], facts["val_images"], facts["files"], facts["classes"]) == (16, 0, 16, ["class0", "class1"])
    assert (facts["test"]["images"], facts["test"]["excluded"]) == (10, 0)


def test_held_back_images_are_drawn_by_seed(files: Settings) -> None:
    held = replace(files, val_fraction=0.25)
    images = choose(held)
    assert images.index.labels[images.val].bincount().tolist() == [2, 2]
    assert torch.cat([images.train, images.val]).sort().values.tolist() == list(range(16))
    assert choose(held).val.equal(images.val) and not choose(replace(held, seed=3)).val.equal(images.val)


def test_lists_select_images(files: Settings, tmp_path: Path) -> None:
    """Both; training images alone, and nothing is held back; held-back ones alone, and all others train."""
    index = choose(files).index
    paths = {}
    for name, numbers in (("train", [0, 3, 9]), ("val", [1, 12]), ("both", [3, 12])):
        paths[name] = str(tmp_path / f"{name}.txt")
        write_list(paths[name], index, torch.tensor(numbers))
    images = choose(replace(files, train_list=paths["train"], val_list=paths["val"]))
    assert images.train.tolist() == [0, 3, 9] and images.val.tolist() == [1, 12]
    images = choose(replace(files, train_list=paths["train"]))
    assert images.train.tolist() == [0, 3, 9] and images.val.tolist() == []
    images = choose(replace(files, val_list=paths["val"]))
    assert images.val.tolist() == [1, 12] and images.train.tolist() == [i for i in range(16) if i not in (1, 12)]
    with pytest.raises(ConfigError, match=r"share 1 images, train/class0/3.png first"):
        choose(replace(files, train_list=paths["train"], val_list=paths["both"]))


def test_missing_test_images_are_an_error_unless_images_are_held_back(
    files: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that started without test images continues without, even if there are some by then."""
    shutil.move(tmp_path / "images/val", tmp_path / "val")
    with pytest.raises(DataError, match=r"no test images: looked for .*; add them, or .* by --val_fraction 0.1") as caught:
        choose(files)
    assert "\n" not in str(caught.value)
    held = replace(files, val_fraction=0.25)
    images = choose(held)
    assert images.test is None and images.facts()["test"] is None
    assert "only the 4 held-back images are evaluated" in caplog.text
    begin(held, images)
    shutil.move(tmp_path / "val", tmp_path / "images/val")
    assert resume(held).test is None


def test_classes_without_test_images_are_logged(files: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(tmp_path / "images/val/class0")
    images = choose(files)
    assert images.test.index.labels.tolist() == [1] * 5
    assert "no test images of 1 of 2 classes: class0" in caplog.text


def test_bad_files_of_every_part_are_excluded(files: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With their reasons; --strict refuses them."""
    held = replace(files, val_fraction=0.25)
    images = choose(held)
    bad = [images.index.files[int(part[0])] for part in (images.train, images.val)] + ["val/class1/2.png"]
    for name in bad:
        (tmp_path / "images" / name).write_bytes(b"no image")
    checked = images.ready(held, 1, begun=False)
    assert [name for name, _ in checked.left_out] == sorted(bad[:2]) + bad[2:]
    assert len(checked.train) + len(checked.val) == 14 and checked.test.numbers.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert checked.facts()["test"]["images"] == 9 and all(f"excluded: {name}: not an image" in caplog.text for name in bad)
    begin(held, checked)
    lines = (tmp_path / "run/excluded.txt").read_text().splitlines()
    assert lines == [f"{name}\tnot an image" for name in sorted(bad[:2]) + bad[2:]]
    again = resume(held).ready(held, 1, begun=True)
    assert same(again, checked) and again.test.sizes.equal(checked.test.sizes)
    with pytest.raises(DataError, match="--strict: 2 of 16 chosen files"):
        choose(held).ready(replace(held, strict=True), 1, begun=False)


def test_unreadable_test_images_are_an_error(files: Settings, tmp_path: Path) -> None:
    for path in tmp_path.glob("images/val/*/*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"too few of the chosen files under .* can be decoded: 0 test"):
        choose(files).ready(files, 1, begun=False)


# continued runs


@pytest.mark.parametrize("val_fraction", [0.0, 0.25])
def test_resumed_run_finds_its_images(val_fraction: float, files: Settings, tmp_path: Path, caplog: Any) -> None:
    """Also elsewhere."""
    caplog.set_level(logging.INFO)
    settings = replace(files, val_fraction=val_fraction)
    images = choose(settings)
    begin(settings, images)
    assert same(resume(settings), images) and "started" not in caplog.text
    shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    assert same(resume(replace(settings, data=str(tmp_path / "elsewhere"))), images)
    assert f"the run's images are now in {tmp_path}/elsewhere, unchanged" in caplog.text


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda val: (val / "class0/1.png").unlink(), r"started with \(10 then, 9 now\)"),
        (lambda val: shutil.copy(val / "class0/1.png", val / "class0/x.png"), r"started with \(10 then, 11 now\)"),
        (lambda val: save(val / "class0/1.png", 9, 9, 1), r"started with \(same file names, but different sizes"),
        (lambda val: shutil.rmtree(val), r"has no test images: .*/run started with test images: put them back"),
    ],
)
def test_other_test_images_are_rejected(harm: Callable[[Path], object], says: str, files: Settings, tmp_path: Path) -> None:
    begin(files, choose(files))
    shutil.copytree(tmp_path / "images", tmp_path / "elsewhere")
    harm(tmp_path / "elsewhere/val")
    with pytest.raises(RunFolderError, match=says):
        resume(replace(files, data=str(tmp_path / "elsewhere")))


def test_other_labels_of_flat_test_images_are_rejected(files: Settings, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "images/val")
    for i in range(3):
        save(tmp_path / f"images/val/{i}.png", 40, 40, i)
    text = "0.png class1\n1.png class0\n2.png class1\n"
    for name, content in (("labels", text), ("same", text), ("other", text.replace("class0", "class1"))):
        (tmp_path / name).write_text(content)
    settings = replace(files, val_labels=str(tmp_path / "labels"))
    images = choose(settings)
    assert images.test.index.labels.tolist() == [1, 0, 1]
    begin(settings, images)
    assert same(resume(replace(settings, val_labels=str(tmp_path / "same"))), images)
    with pytest.raises(RunFolderError, match="the same test images, but with other labels"):
        resume(replace(settings, val_labels=str(tmp_path / "other")))


def test_lists_of_a_resumed_run_are_compared(files: Settings, tmp_path: Path) -> None:
    index = choose(files).index
    for name, numbers in (("a", [1, 12]), ("same", [12, 1]), ("other", [1, 13])):
        write_list(tmp_path / f"{name}.txt", index, torch.tensor(numbers))
    settings = replace(files, val_list=str(tmp_path / "a.txt"))
    begin(settings, choose(settings))
    assert resume(replace(settings, val_list=str(tmp_path / "same.txt"))).val.tolist() == [1, 12]
    with pytest.raises(RunFolderError, match=r"--val_list .*other.txt differs from .*a.txt, .* in train/class1/4.png"):
        resume(replace(settings, val_list=str(tmp_path / "other.txt")))


def test_arrays_of_a_resumed_run_are_compared(arrays: Settings, tmp_path: Path) -> None:
    held = replace(arrays, val_fraction=0.25)
    images = choose(held, TrainingArrays).ready(held, 1, begun=False)
    assert (len(images.train), len(images.val), len(images.test.numbers)) == (12, 4, 7)
    assert images.test.index.root == tmp_path / "test.npz"
    begin(held, images)
    assert same(resume(held, TrainingArrays), images)
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "train.npz", tmp_path / "other")
    np.savez(tmp_path / "other/test.npz", images=np.zeros((7, 16, 16, 3), np.uint8), labels=np.arange(7) % 2)
    with pytest.raises(RunFolderError, match=r"other/test.npz are not those that .* started with \(7 then, 7 now\)"):
        resume(replace(held, data=str(tmp_path / "other")), TrainingArrays)


# other ranks


def test_other_ranks_use_images_found_by_rank_0(files: Settings, tmp_path: Path) -> None:
    """Files that rank 0 excludes after the others have found theirs, too; other test images on a node are refused."""
    images = choose(files)
    there = TrainingFiles.listed(files, pickle.loads(pickle.dumps(images.splits())))
    assert same(there, images)
    for name in ("train/class0/2.png", "val/class0/2.png"):
        (tmp_path / "images" / name).write_bytes(b"")
    checked = images.ready(files, 1, begun=False)
    there = there.taking(pickle.loads(pickle.dumps(checked.splits())))
    assert same(there, checked) and there.test.sizes.equal(checked.test.sizes) and there.left_out == checked.left_out
    (tmp_path / "images/val/class0/2.png").unlink()
    with pytest.raises(DataError, match="differ from those on rank 0: give all nodes the same images"):
        TrainingFiles.listed(files, images.splits())


# loaders and passes


ROUTES = {
    "cache": {},
    "cache in a file": {"cache_folder": "kept"},
    "torchvision": {"cache": "off"},
}


def opened(settings: Settings, dataset: Any = IMAGENET, world: World | None = None) -> Any:
    """Images and input, as a run opens them."""
    images = choose(settings, dataset.training).ready(settings, 1, begun=False)
    options = {"threads": 1, "saved": None, "reserved": 0, "world": world}
    return images, dataset.open_training(settings, images, **options)


@pytest.mark.parametrize("route", ROUTES)
def test_loader_follows_stream_order(route: str, files: Settings, tmp_path: Path) -> None:
    """Whatever the route; of 15 images in batches of 4, three are dropped in each epoch."""
    flags = {name: value.replace("kept", str(tmp_path / "kept")) for name, value in ROUTES[route].items()}
    settings = replace(files, val_fraction=0.01, seed=5, **flags)
    images, loaders = opened(settings)
    sampler = BatchSampler(images.train, stream=Stream.TRAIN, seed=5, batch_size=4)
    assert len(images.train) == 14 and len(loaders.train) == len(sampler) == 3
    for number in range(4):
        batch = next(loaders.train)
        assert batch.index.equal(sampler.batch(number)[1]) and batch.images.shape == (4, 32, 32, 3)
    loaders.close()
    held = [batch.index for batch in loaders.val]
    assert torch.cat(held).sort().values.equal(images.val)
    assert loaders.facts["route"] == ("torchvision" if route == "torchvision" else "cache")


def test_cached_test_images_match_torchvision(files: Settings) -> None:
    """To the bit, since they are kept at the size of evaluation: a test accuracy does not depend on the cache."""
    images, loaders = opened(files)
    assert loaders.facts["route"] == "cache"
    plain = EvalLoader(images.test.index, images.test.numbers, batch_size=4, image_size=32, workers=0)
    for kept, decoded in zip(loaders.test, plain, strict=True):
        assert all(a.equal(b) for a, b in zip(kept, decoded, strict=True))


@pytest.mark.parametrize("route", ["memory", *ROUTES])
def test_two_ranks_cover_each_test_image_once(route: str, files: Settings, arrays: Settings, tmp_path: Path) -> None:
    """Also those of the incomplete last batch; and each training batch is shared equally."""
    if route == "memory":
        settings, dataset = arrays, CIFAR
    else:
        flags = {name: value.replace("kept", str(tmp_path / "kept")) for name, value in ROUTES[route].items()}
        settings, dataset = replace(files, **flags), IMAGENET
    inputs = [opened(settings, dataset, Rank(rank)) for rank in range(2)]
    images = inputs[0][0]
    seen = [torch.cat([batch.index for batch in loaders.test]) for _, loaders in inputs]
    labels = torch.cat([batch.labels for _, loaders in inputs for batch in loaders.test])
    assert torch.cat(seen).sort().values.equal(images.test.numbers) and all(len(each) for each in seen)
    assert labels.equal(images.test.index.labels[torch.cat(seen)])
    halves = [next(loaders.train).index for _, loaders in inputs]
    whole = BatchSampler(images.train, stream=Stream.TRAIN, seed=0, batch_size=4).batch(0)[1]
    assert halves[0].equal(whole[::2]) and halves[1].equal(whole[1::2])
    for _, loaders in inputs:
        loaders.close()


def test_no_held_back_or_test_images_means_no_evaluation(files: Settings, tmp_path: Path) -> None:
    _, loaders = opened(files)
    assert loaders.val is None and len(loaders.test) == 3
    shutil.rmtree(tmp_path / "images/val")
    _, loaders = opened(replace(files, val_fraction=0.25, save=str(tmp_path / "other")))
    assert loaders.test is None and len(loaders.val) == 1


def test_arrays_are_cropped_with_padding_and_tested_whole(arrays: Settings) -> None:
    images, loaders = opened(arrays, CIFAR)
    assert loaders.val is None and loaders.facts == {"route": "memory", "place": "ram", "bytes": 23 * 16 * 16 * 3}
    for batch in loaders.test:
        assert batch.images.equal(images.test.index.pixels[batch.index]) and not batch.flip.any()
    batch = next(loaders.train)
    assert not batch.images.equal(images.index.pixels[batch.index])
    loaders.close()


def test_forecasts_state_the_memory_of_all_images(files: Settings, arrays: Settings) -> None:
    """Short sides of training images are those of the files, of test images 37 pixels; taken from headers."""
    world = World()
    message = IMAGENET.forecast_training(files, choose(files), 0, world)
    images, loaders = opened(files)
    assert loaders.facts["bytes"] > 3 * sum(int(s.prod()) for s in images.sizes.long()[images.train])
    assert message == f"cache: {loaders.facts['bytes'] / 2**20:.1f} MiB of decoded images in RAM"
    message = CIFAR.forecast_training(arrays, choose(arrays, TrainingArrays), 0, world)
    assert message == "input: 0.0 MiB of images in RAM; crops of 16 of 16 px, 4 pixels of black padding, flips"


def test_invalid_sizes_are_rejected(files: Settings, arrays: Settings, tmp_path: Path) -> None:
    images = choose(arrays, TrainingArrays)
    assert images.side(replace(arrays, image_size=0)) == 16 and choose(files).side(replace(files, image_size=0)) == 224
    with pytest.raises(ConfigError, match=r"--image_size 17: .* have only 16 pixels a side"):
        images.side(replace(arrays, image_size=17))
    with pytest.raises(ConfigError, match="--crop_padding 16: crops of 16 pixels could be all black"):
        images.side(replace(arrays, crop_padding=16))
    np.savez(tmp_path / "test.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=[0, 1])
    with pytest.raises(DataError, match=r"test images of .*test.npz have 8 pixels a side, those of .*train.npz 16"):
        choose(arrays, TrainingArrays)


# test images alone


def test_evaluation_needs_no_training_images(files: Settings, arrays: Settings, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "images/train")
    (tmp_path / "images/val/class1/3.png").write_bytes(b"")
    (tmp_path / "train.npz").unlink()
    for settings, dataset, count in ((files, IMAGENET, 9), (arrays, CIFAR, 7)):
        both = [dataset.open_test(replace(settings, image_size=0), threads=1, world=Rank(rank)) for rank in range(2)]
        seen = torch.cat([batch.index for found in both for batch in found.test])
        assert seen.sort().values.equal(both[0].images.numbers) and len(seen) == count
        assert f"{count} test images of" in both[0].message and len(both[0].images.index.classes) == 2
    assert next(iter(IMAGENET.open_test(files, threads=1).test)).images.shape == (4, 32, 32, 3)


def test_evaluation_takes_the_given_classes(files: Settings, tmp_path: Path) -> None:
    found = IMAGENET.open_test(files, threads=1, classes=("a", "class1", "class0"))
    assert found.images.index.labels.tolist() == [2] * 5 + [1] * 5
    with pytest.raises(DataError, match="which are no classes of the training images"):
        IMAGENET.open_test(files, threads=1, classes=("class0", "b"))
    shutil.rmtree(tmp_path / "images/val")
    with pytest.raises(DataError, match="has no test images"):
        IMAGENET.open_test(files, threads=1)


def test_sample_has_test_images(files: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated when a retraining or an evaluation asks for them."""
    asked = []

    def sample_root(split: str = "train") -> Path:
        asked.append(split)
        return tmp_path / "images"

    monkeypatch.setattr("fastdarts.inputs.origin.sample_root", sample_root)
    assert len(choose(replace(files, data=None)).test.numbers) == 10 and asked == ["train", "val"]


def test_statistics_are_chosen_by_name_or_by_number_of_classes() -> None:
    assert (
        statistics_of("auto", CIFAR, 100) == STATISTICS["cifar100"] and statistics_of("auto", CIFAR, 7) == STATISTICS["cifar10"]
    )
    assert statistics_of("auto", IMAGENET, 100) == STATISTICS["imagenet"]
    assert statistics_of("cifar10", CIFAR, 100) == STATISTICS["cifar10"]
    mean, std = statistics_of("nasbench201-cifar10", CIFAR, 10)
    assert mean == (125.3 / 255, 123.0 / 255, 113.9 / 255) and std == (63.0 / 255, 62.1 / 255, 66.7 / 255)


def test_lists_of_a_run_can_be_given_to_another(files: Settings, tmp_path: Path) -> None:
    held = replace(files, val_fraction=0.25)
    images = choose(held)
    begin(held, images)
    assert read_list(tmp_path / "run/train.txt", images.index).equal(images.train)
    lists = {f"{part}_list": str(tmp_path / f"run/{part}.txt") for part in ("train", "val")}
    assert same(choose(replace(files, save=str(tmp_path / "other"), **lists)), images)
