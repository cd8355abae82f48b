"""Test images of a folder: which of its folders they are, and their labels, from class folders or from a text file."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fastdarts.data import DataError, ImageIndex, NoTestImages, evaluation_index

CLASSES = ("n01", "n02", "n10")
Labelled = dict[str, int]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """ROOT with two training images of each of CLASSES."""
    for name in CLASSES:
        images(tmp_path / "train" / name, 2)
    return tmp_path


def images(folder: Path, count: int, name: str = "im_{}.JPEG") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (4, 4)).save(folder / name.format(i))


def flat(root: Path, count: int = 6, split: str = "val") -> Path:
    """Flat folder of images named as ImageNet's."""
    images(root / split, count, "ILSVRC2012_val_0000000{}.JPEG")
    return root / split


def labelled(index: ImageIndex) -> Labelled:
    return {Path(name).stem[-1]: label for name, label in zip(index.files, index.labels.tolist(), strict=True)}


def refusal(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        evaluation_index(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("split", ["val", "test", "valid"])
def test_class_folders_use_training_labels(split: str, root: Path) -> None:
    for name in ("n10", "n01"):
        images(root / split / name, 2)
    index = evaluation_index(root)
    assert index.classes == CLASSES and index.labels.tolist() == [0, 0, 2, 2]
    assert index.files[2] == f"{split}/n10/im_0.JPEG" and index.root == root


def test_test_images_are_preferred_if_they_have_labels(root: Path) -> None:
    """ImageNet's `test` has none: its `val` is then evaluated. A data set with both has its accuracy on `test`."""
    images(root / "val/n01", 1)
    images(root / "test", 3)
    assert evaluation_index(root).files == ("val/n01/im_0.JPEG",)
    images(root / "test/unlabelled", 1)
    assert evaluation_index(root).files == ("val/n01/im_0.JPEG",)
    images(root / "test/n02", 1)
    images(root / "test/n01", 1)
    (root / "test/unlabelled/im_0.JPEG").unlink()
    assert evaluation_index(root).files == ("test/n01/im_0.JPEG", "test/n02/im_0.JPEG")


def test_classes_are_given_or_own_without_training_images(tmp_path: Path) -> None:
    images(tmp_path / "val/n10", 1)
    images(tmp_path / "val/n02", 1)
    assert evaluation_index(tmp_path).classes == ("n02", "n10")
    index = evaluation_index(tmp_path, CLASSES)
    assert index.classes == CLASSES and index.labels.tolist() == [1, 2]


def test_folder_of_unknown_class_is_named(root: Path) -> None:
    images(root / "val/n01", 1)
    images(root / "val/cat", 1)
    assert "val has 1 class folders cat, which are no classes of the training images (n01, n02, n10)" in refusal(root)


NAMED = "ILSVRC2012_val_0000000{}.JPEG"
EXPECTED = {"0": 2, "1": 0, "2": 1, "3": 1, "4": 0, "5": 2}
FILES = {  # name of the file, text of a line
    "caffe's val.txt": ("val.txt", lambda i, label: f"{NAMED.format(i)} {label}"),
    "with the folder": ("val.txt", lambda i, label: f"./val/{NAMED.format(i)} {CLASSES[label]}"),
    "a table": ("val.csv", lambda i, label: f'"{NAMED.format(i)}",{CLASSES[label]}'),
    "Tiny-ImageNet's": ("val/val_annotations.txt", lambda i, label: f"{NAMED.format(i)}\t{CLASSES[label]}\t0\t32\t44\t62"),
    "Kaggle's": (
        "LOC_val_solution.csv",
        lambda i, label: f"{NAMED.format(i)[:-5]},{CLASSES[label]} 85 1 499 272 {CLASSES[label]} 1 1 9 9",
    ),
    "TensorFlow's": ("val/imagenet_2012_validation_synset_labels.txt", lambda i, label: CLASSES[label]),
    "numbers in order": ("val_labels.txt", lambda i, label: str(label)),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_flat_images_with_label_file(name: str, end: str, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In or next to the folder, in the forms in which such files are published; headings are skipped."""
    flat(root)
    place, line = FILES[name]
    lines = [line(i, EXPECTED[str(i)]) for i in range(6)]
    if place.endswith(".csv"):
        lines.insert(0, "ImageId,PredictionString")
    (root / place).write_text(end.join(lines) + end)
    index = evaluation_index(root)
    assert labelled(index) == EXPECTED and index.classes == CLASSES
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert index.files[0] == "val/ILSVRC2012_val_00000000.JPEG" and not warned


def test_label_file_may_be_anywhere(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also for images in an inner folder, in any order."""
    images(root / "val/images", 3, "a {}.JPEG")
    path = tmp_path_factory.mktemp("elsewhere") / "labels"
    path.write_text("a 2.JPEG n01\na 0.JPEG n02\na 1.JPEG n10\n")
    index = evaluation_index(root, labels=path)
    assert index.files == tuple(f"val/images/a {i}.JPEG" for i in range(3)) and index.labels.tolist() == [1, 2, 0]


def test_imagenet_numbers_need_class_map(root: Path) -> None:
    """They follow the devkit's order, which is not that of the class folders."""
    flat(root)
    truth = root / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("\n".join("312213") + "\n")
    assert "numbers from 1, as ImageNet's devkit" in refusal(root) and "map_clsloc.txt" in refusal(root)
    (root / "map_clsloc.txt").write_text("n10 1 kit_fox\nn01 2 English_setter\nn02 3 Siberian_husky\n")
    assert labelled(evaluation_index(root)) == {"0": 1, "1": 2, "2": 0, "3": 0, "4": 2, "5": 1}
    truth.write_text("\n".join("312214") + "\n")
    assert f"has numbers that {root}/map_clsloc.txt has not: 4" in refusal(root)


def test_numeric_folder_names_are_matched_by_name(tmp_path: Path) -> None:
    """Sorted as text, the folder 10 is the second and not the eleventh."""
    for name in ("1", "10", "2"):
        images(tmp_path / "train" / name, 1)
    flat(tmp_path, 3)
    (tmp_path / "val.txt").write_text("".join(f"{NAMED.format(i)} {label}\n" for i, label in enumerate((10, 2, 1))))
    assert evaluation_index(tmp_path).labels.tolist() == [1, 2, 0]


def test_labels_give_classes_without_training_images(tmp_path: Path) -> None:
    flat(tmp_path, 2)
    (tmp_path / "val.txt").write_text(f"{NAMED.format(0)} n7\n{NAMED.format(1)} n3\n")
    index = evaluation_index(tmp_path)
    assert index.classes == ("n3", "n7") and index.labels.tolist() == [1, 0]
    (tmp_path / "val.txt").write_text(f"{NAMED.format(0)} 7\n{NAMED.format(1)} 3\n")
    index = evaluation_index(tmp_path)
    assert index.classes == tuple(map(str, range(8))) and index.labels.tolist() == [7, 3]


def test_unmatched_images_and_labels_are_ignored_and_logged(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    flat(root, 3)
    (root / "val.txt").write_text("".join(f"{NAMED.format(i)} 1\n" for i in (0, 2, 8, 9)))
    with caplog.at_level(logging.WARNING):
        assert labelled(evaluation_index(root)) == {"0": 1, "2": 1}
    assert "2 lines name no image of val: ILSVRC2012_val_00000008.JPEG, ILSVRC2012_val_00000009.JPEG" in caplog.text
    assert "1 of 3 images have no label and are left out: val/ILSVRC2012_val_00000001.JPEG" in caplog.text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "val.txt is empty: write lines NAME LABEL"),
        ("train/n01/im_0.JPEG\n", "val.txt has 1 labels without names for 2 images"),
        ("cat.JPEG 0\ndog.JPEG 1\n", "names no image of val, as val/ILSVRC2012_val_00000000.JPEG; it names cat.JPEG, dog.JPEG"),
        (f"{NAMED.format(0)} 0\n{NAMED.format(1)} 3\n", "line 2: 3 is no label of 3 classes, n01, n02, n10"),
        (f"{NAMED.format(0)} 1\n{NAMED.format(1)} -1\n", "line 2: -1 is no label"),
        (f"{NAMED.format(0)} n01\n{NAMED.format(1)} cat\n", "line 2: cat is no label"),
        (f"{NAMED.format(0)} 0\n{NAMED.format(0)} 1\n", "line 2: val/ILSVRC2012_val_00000000.JPEG has a label in line 1"),
        (f"{NAMED.format(0)},\n{NAMED.format(1)},1\n", "line 1: ILSVRC2012_val_00000000.JPEG, has no label"),
    ],
)
def test_invalid_label_files_are_rejected(text: str, says: str, root: Path) -> None:
    flat(root, 2)
    (root / "val.txt").write_text(text)
    assert says in refusal(root)


def test_images_without_labels_name_remedy(root: Path) -> None:
    flat(root, 2)
    message = refusal(root)
    assert "val is flat, its 2 images are directly in it, without labels: move each into the folder of its class" in message
    assert "or give --val_labels FILE of lines NAME LABEL (val.txt, val_annotations.txt, LOC_val_solution.csv, ...)" in message
    assert "cannot read the file list" in refusal(root, labels=root / "nothing.txt")


def test_label_file_for_class_folders_is_rejected(root: Path) -> None:
    images(root / "val/n01", 1)
    assert "val has class folders, whose names are the labels: leave it out" in refusal(root, labels=root / "labels.txt")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda root: None, "has no test images: looked for val/CLASS/*.JPEG and test/CLASS/*.JPEG, found train"),
        (
            lambda root: images(root / "val/cat", 1),
            "val has no folder of a class of the training images: looked for .+ found cat",
        ),
        (
            lambda root: (root / "val").mkdir(),
            "val has no folder of a class of the training images: looked for .+ found nothing",
        ),
        (lambda root: images(root / "val/images", 1), "val is flat, its images are in images/, without labels"),
    ],
)
def test_missing_test_images_are_reported(make: Callable[[Path], object], says: str, root: Path) -> None:
    make(root)
    with pytest.raises(DataError, match=says.replace("*.", r"\*.")) as caught:
        evaluation_index(root)
    assert isinstance(caught.value, NoTestImages) == ("has no test images" in says)
