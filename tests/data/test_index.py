"""Listing an ImageNet-layout folder, and messages about invalid ones."""

import os
import shutil
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fastdarts.data import DataError, ImageIndex
from fastdarts.data.index import EXTENSIONS

Tree = Callable[..., Path]
Nobody = Callable[[], AbstractContextManager[None]]


def test_numbering_is_by_class_then_name(tree: Tree) -> None:
    root = tree(**{"b": 2, "a-b": 1, "a": 2})  # as path strings, a-b/ would come before a/
    index = ImageIndex.from_root(root)
    assert index.classes == ("a", "a-b", "b")
    expected = ("a/a_0", "a/a_1", "a-b/a-b_0", "b/b_0", "b/b_1")
    assert index.files == tuple(f"train/{name}.JPEG" for name in expected)
    assert index.labels.tolist() == [0, 0, 1, 2, 2]
    assert len(index) == 5 and index.root == root
    assert Path(index.path(3)) == root / "train/b/b_0.JPEG"


def test_index_matches_torchvision(sample: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    theirs = datasets.ImageFolder(sample / "train")
    ours = ImageIndex.from_root(sample)
    assert list(ours.classes) == theirs.classes
    assert [(ours.path(i), ours.labels[i].item()) for i in range(len(ours))] == theirs.samples
    assert EXTENSIONS == datasets.folder.IMG_EXTENSIONS


def test_image_suffixes_are_recognised(tree: Tree) -> None:
    root = tree(a=1)
    for name in ("x.png", "y.WebP", "z.JpG", "notes.txt", ".hidden.JPEG", "data.npz"):
        (root / "train/a" / name).touch()
    (root / "train/a/folder.jpg").mkdir()
    (root / "train/.cache").mkdir()
    os.mkfifo(root / "train/a/pipe.jpg")
    (root / "train/a/broken.jpg").symlink_to(root / "nowhere")
    (root / "train/a/circle.jpg").symlink_to("circle.jpg")
    index = ImageIndex.from_root(root)
    names = ["a_0.JPEG", "broken.jpg", "circle.jpg", "folder.jpg", "pipe.jpg", "x.png", "y.WebP", "z.JpG"]
    assert [Path(f).name for f in index.files] == names  # verify() says which of them are no files
    assert index.classes == ("a",)


def test_other_split_is_indexed(tree: Tree) -> None:
    root = tree(a=2)
    (root / "train").rename(root / "val")
    assert ImageIndex.from_root(root, "val").files == ("val/a/a_0.JPEG", "val/a/a_1.JPEG")


def test_empty_classes_and_loose_images_are_ignored_with_warning(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    root = tree(a=1, b=0, c=1)
    shutil.copy(root / "train/a/a_0.JPEG", root / "train/loose.JPEG")
    index = ImageIndex.from_root(root)
    assert index.classes == ("a", "c") and index.labels.tolist() == [0, 1]
    assert "ignoring 1 class folders without images: b" in caplog.text
    assert "ignoring 1 images outside the class folders: loose.JPEG" in caplog.text


def refusal(root: Path) -> str:
    """The one line that from_root refuses `root` with."""
    with pytest.raises(DataError) as caught:
        ImageIndex.from_root(root)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_root_is_named(tmp_path: Path) -> None:
    assert f"cannot read {tmp_path / 'nothing'}: No such file or directory" in refusal(tmp_path / "nothing")


def test_file_as_root_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "images.txt").touch()
    assert "images.txt is a file: expected a readable folder, ROOT of ROOT/train" in refusal(tmp_path / "images.txt")


def test_packed_archive_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(tmp_path / "packed", "train")
    shutil.copy(tmp_path / "images.tar", tmp_path / "packed")
    assert "images.tar is a tar archive: unpack it and give the resulting folder" in refusal(tmp_path / "images.tar")
    assert "found images.tar; images.tar is an archive, unpack it" in refusal(tmp_path / "packed")


def test_missing_train_folder_is_rejected(tmp_path: Path) -> None:
    assert "has no folder 'train': expected ROOT/train/CLASS/*.JPEG, found nothing" in refusal(tmp_path)
    (tmp_path / "training/cat").mkdir(parents=True)
    assert "found training/cat" in refusal(tmp_path)


def test_train_folder_as_root_gets_hint(tree: Tree) -> None:
    root = tree(a=1, b=1)
    assert f"looks like the train folder itself; give its parent {root}" in refusal(root / "train")
    (root / "train").rename(root / "mine")
    assert "looks like the train folder itself; move it to ROOT/train and give ROOT" in refusal(root / "mine")


def test_class_folder_as_root_gets_hint(tree: Tree) -> None:
    assert "2 images are directly in it; arrange them as ROOT/train/CLASS/a_0.JPEG" in refusal(tree(a=2) / "train/a")


def test_flat_train_folder_gets_hint(tree: Tree) -> None:
    root = tree(a=2)
    (root / "train").rename(root / "old")
    (root / "old/a").rename(root / "train")
    message = refusal(root)
    assert f"{root / 'train'} is flat, its 2 images are directly in it: move each into the folder" in message
    assert "train/CLASS/a_0.JPEG" in message


def test_flat_val_folder_is_rejected_only_if_read(tree: Tree) -> None:
    root = tree(a=2, b=2)
    shutil.copytree(root / "train/a", root / "val")
    assert len(ImageIndex.from_root(root)) == 4
    with pytest.raises(DataError, match=r"val is flat, its 2 images are directly in it: .* val/CLASS/a_0.JPEG"):
        ImageIndex.from_root(root, "val")
    (root / "val").rename(root / "train/c")
    assert len(ImageIndex.from_root(root)) == 6


def test_folder_without_images_is_rejected(tree: Tree) -> None:
    root = tree(a=0)
    assert f"no images in {root / 'train'}: expected train/CLASS/*.JPEG, found a" in refusal(root)
    (root / "train/a/images").mkdir()  # as Tiny-ImageNet has it
    assert "found a/images" in refusal(root)
    shutil.rmtree(root / "train/a")
    assert "found nothing" in refusal(root)


def test_unreadable_folder_is_named(public: Path, nobody: Nobody) -> None:
    locked = public / "train/a"
    locked.mkdir(parents=True)
    locked.chmod(0)
    with nobody():
        assert f"cannot read {locked}: Permission denied" in refusal(public)
