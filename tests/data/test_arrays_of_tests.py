"""Test images in memory: every place where they lie next to the training images, in the classes of those."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdarts.data import DataError, ImageArray, NoTestImages, read_images, sample_images
from tests.data.test_arrays import IMAGES, LABELS, NAMES, NUMBERS, ROWS, cifar10, folder_of, write

TESTS, THEIRS = IMAGES[5:], [3, 0, 0, 2, 1]  # the last five images


def of_tests(path: Path, classes: tuple[str, ...] | None = None) -> ImageArray:
    """The test images of `path`; the training images, if any, are read and other ones."""
    return read_images(path, split="test", classes=classes)


def right(array: ImageArray) -> bool:
    return np.array_equal(array.pixels.numpy(), TESTS) and array.labels.tolist() == THEIRS


def test_cifar10_test_batch_is_read(tmp_path: Path) -> None:
    folder = cifar10(tmp_path / "cifar-10-batches-py")
    write(folder / "test_batch", {"data": ROWS[5:], "labels": LABELS[5:]})
    for path in (tmp_path, folder):
        array = of_tests(path, tuple(NAMES))
        assert right(array) and array.classes == tuple(NAMES) and array.files[4] == "test/4" and array.root == folder
    for path in folder.glob("data_batch_*"):
        path.unlink()
    assert right(of_tests(folder))
    with pytest.raises(DataError, match=r"cannot read .*data_batch_1"):
        read_images(folder)


def test_cifar100_test_file_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    write(folder / "train", {b"data": ROWS, b"fine_labels": LABELS, b"coarse_labels": [0] * 10})
    write(folder / "test", {b"data": ROWS[5:], b"fine_labels": LABELS[5:], b"coarse_labels": [0] * 5})
    write(folder / "meta", {b"fine_label_names": NAMES})
    assert right(of_tests(tmp_path)) and len(read_images(tmp_path)) == 10


def test_missing_test_batch_means_no_test_images(tmp_path: Path) -> None:
    folder = cifar10(tmp_path / "cifar-10-batches-py")
    with pytest.raises(DataError, match=r"cannot read .*test_batch: No such file"):
        of_tests(tmp_path)
    write(folder / "test_batch", {"data": ROWS[5:], "labels": LABELS[5:]})
    with pytest.raises(DataError, match="has the classes cat, dog, frog, ship, the training images ship, cat"):
        of_tests(tmp_path, ("ship", "cat"))


TRAIN = {"images": IMAGES, "labels": NUMBERS}


@pytest.mark.parametrize(
    ("training", "tests"),
    [
        ("train.npz", "test.npz"),
        ("train_jpeg.npz", "val_jpeg.npz"),
        ("cifar_train.npz", "cifar_test.npz"),
        ("train.npz", "test_images.npz"),
    ],
)
def test_npz_test_file_is_read(training: str, tests: str, tmp_path: Path) -> None:
    np.savez(tmp_path / training, **TRAIN)
    np.savez(tmp_path / tests, images=TESTS, labels=THEIRS)
    array = of_tests(tmp_path / training, tuple("0123"))
    assert right(array) and array.root == tmp_path / tests and array.files[0] == "test/0"
    if training.startswith("train"):
        assert right(of_tests(tmp_path)) and len(read_images(tmp_path)) == 10
    (tmp_path / training).unlink()
    if tests.startswith(("test", "val")):
        assert right(of_tests(tmp_path)) and right(of_tests(tmp_path / tests))


@pytest.mark.parametrize(
    "names", [("x_test", "y_test"), ("testX", "testY"), ("test_images", "test_labels"), ("x_val", "y_val")]
)
def test_npz_file_with_both_splits_is_read(names: tuple[str, str], tmp_path: Path) -> None:
    """As Keras' mnist.npz and MedMNIST have it; other test images next to it are not taken."""
    np.savez(tmp_path / "train.npz", **TRAIN, **dict(zip(names, (TESTS, np.array(THEIRS)[:, None]), strict=True)))
    np.savez(tmp_path / "test.npz", **TRAIN)
    for path in (tmp_path, tmp_path / "train.npz"):
        assert right(of_tests(path))
    assert len(read_images(tmp_path)) == 10


def test_splits_named_test_precede_val(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", **TRAIN, val_images=IMAGES, val_labels=NUMBERS, test_images=TESTS, test_labels=THEIRS)
    assert right(of_tests(tmp_path))


@pytest.mark.parametrize(
    ("labels", "theirs", "classes"),
    [
        (NUMBERS + 1, [4, 1, 1, 3, 2], ("1", "2", "3", "4")),
        (np.array(NAMES)[NUMBERS], [NAMES[i] for i in THEIRS], tuple(NAMES)),
        (np.eye(4)[NUMBERS], np.eye(4)[THEIRS], tuple("0123")),
    ],
)
def test_test_labels_are_numbered_as_training_labels(labels: object, theirs: object, classes: tuple, tmp_path: Path) -> None:
    """Also where the test images alone would be numbered otherwise: here without the last class, and two of the first."""
    np.savez(tmp_path / "train.npz", images=IMAGES, labels=labels)
    np.savez(tmp_path / "test.npz", images=TESTS[1:], labels=theirs[1:])
    training = read_images(tmp_path)
    assert training.classes == classes and training.labels.tolist() == LABELS
    array = of_tests(tmp_path, training.classes)
    assert array.labels.tolist() == THEIRS[1:] and array.classes == classes


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        ([3, 0, 0, 2, 4], r"test.npz: 1 labels are no classes of the training images, 4; the training images have 0, 1, 2, 3"),
        ([-1, 0, 0, 2, 1], "1 labels are no classes of the training images, -1"),
        (["cat"] * 5, "are no classes of the training images, cat"),
        ([3, 0, 0, 2], "5 images, but 4 labels"),
    ],
)
def test_invalid_test_labels_are_rejected(theirs: list, says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", **TRAIN)
    np.savez(tmp_path / "test.npz", images=TESTS, labels=np.array(theirs))
    with pytest.raises(DataError, match=says):
        of_tests(tmp_path, read_images(tmp_path).classes)


def test_npz_files_without_test_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", **TRAIN)
    for path in (tmp_path, tmp_path / "train.npz"):
        with pytest.raises(NoTestImages, match=r"looked for x_test with y_test, .*; found images, labels in it, and the files"):
            of_tests(path)
    for name in ("test_a", "test_b"):
        np.savez(tmp_path / f"{name}.npz", **TRAIN)
    with pytest.raises(DataError, match=r"holds test_a.npz, test_b.npz: take all but one of them away"):
        of_tests(tmp_path)


@pytest.mark.parametrize("split", ["test", "val"])
def test_folders_of_test_files_are_read(split: str, tmp_path: Path) -> None:
    folder_of(tmp_path)
    shutil.copytree(tmp_path / "train", tmp_path / split)
    shutil.rmtree(tmp_path / split / "cat")
    array = of_tests(tmp_path)
    assert array.classes == tuple(NAMES) and array.labels.tolist() == [1, 1, 1, 2, 2, 3, 3]
    assert array.files[0] == f"{split}/dog/1.png" and array.pixels.shape == (7, 32, 32, 3)
    Image.new("RGB", (32, 31)).save(tmp_path / split / "dog/1.png")
    with pytest.raises(DataError, match="all must have the same size"):
        of_tests(tmp_path)


def test_flat_folder_of_test_files_is_read(tmp_path: Path) -> None:
    folder_of(tmp_path)
    (tmp_path / "val").mkdir()
    for i, image in enumerate(TESTS):
        Image.fromarray(image).save(tmp_path / f"val/{i}.png")
    (tmp_path / "labels").write_text("".join(f"{i}.png {NAMES[label]}\n" for i, label in enumerate(THEIRS)))
    assert right(read_images(tmp_path, split="test", labels=tmp_path / "labels"))
    np.savez(tmp_path / "test.npz", images=TESTS, labels=THEIRS)
    with pytest.raises(DataError, match=r"--val_labels .*labels: the test images of .* come with labels: leave it out"):
        read_images(tmp_path, split="test", labels=tmp_path / "labels")


def test_sample_test_images(sample: Path) -> None:
    training, tests = sample_images(sample.parent), sample_images(sample.parent, "test")
    assert tests.classes == training.classes and tests.labels.bincount().tolist() == [40] * 10
    assert tests.pixels.shape == (400, 32, 32, 3) and tests.files[0] == "val/blobs/blobs_0100.JPEG"


def test_real_cifar10_and_tiny_imagenet_are_read(shared_data: Path) -> None:
    tests = of_tests(shared_data / "cifar10", tuple(map(str, range(10))))
    assert tests.pixels.shape == (10000, 32, 32, 3) and tests.labels.bincount().tolist() == [1000] * 10
    tests = of_tests(shared_data / "tinyimagenet48")
    assert tests.pixels.shape == (2400, 64, 64, 3) and tests.labels.bincount().tolist() == [50] * 48
