"""Images in memory: every input format, invalid input, and the batches cropped from them."""

import gzip
import os
import pickle
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdarts.data import ArrayEvalLoader, ArrayLoader, DataError, ImageArray, Pixels, read_images, sample_images, subsets
from fastdarts.data.array_loader import corners, windows
from fastdarts.data.cifar_pickle import read_pickle
from fastdarts.data.sampler import shuffled
from fastdarts.data.view import View
from fastdarts.ops.philox import Purpose, Stream, random_words
from tests.data.encodings import encoded

RNG = np.random.default_rng(0)
ROWS = RNG.integers(0, 256, (10, 3072), dtype=np.uint8)
LABELS = [3, 1, 0, 2, 1, 3, 0, 0, 2, 1]
NAMES = ["cat", "dog", "frog", "ship"]
IMAGES = np.stack([ROWS[:, 1024 * c : 1024 * (c + 1)].reshape(-1, 32, 32) for c in range(3)], -1)  # (10, 32, 32, 3)


def write(path: Path, content: Any, protocol: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))


def cifar10(folder: Path, key: Callable[[str], Any] = str, protocol: int = 2) -> Path:
    """Two images in each of five batches."""
    for i in range(5):
        part = slice(2 * i, 2 * i + 2)
        batch = {key("data"): ROWS[part], key("labels"): LABELS[part], key("batch_label"): key(f"training batch {i + 1} of 5")}
        write(folder / f"data_batch_{i + 1}", batch, protocol)
    write(folder / "batches.meta", {key("label_names"): [key(name) for name in NAMES], key("num_vis"): 3072}, protocol)
    return folder


@pytest.fixture
def batches(tmp_path: Path) -> Path:
    return cifar10(tmp_path / "cifar-10-batches-py")


def same(array: ImageArray) -> bool:
    return array.pixels.equal(torch.from_numpy(IMAGES)) and array.labels.tolist() == LABELS


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("key", [str, lambda text: text.encode()], ids=["text", "bytes"])
def test_cifar_batches_of_every_pickle_protocol_are_read(key: Callable, protocol: int, tmp_path: Path) -> None:
    folder = cifar10(tmp_path / "cifar-10-batches-py", key, protocol)
    for path in (folder, tmp_path):
        array = read_images(path)
        assert same(array) and array.classes == tuple(NAMES) and array.root == folder
    assert array.files[7] == "train/7" and array.side == 32 and len(array) == 10


def python2(pixels: bytes, labels: bytes) -> bytes:
    """What Python 2 wrote: text and the array's content as byte strings, opcodes U and T."""
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    content = b"T" + len(pixels).to_bytes(4, "little") + pixels
    state = b"(K\x01K" + bytes([len(pixels) // 3072]) + b"M\x00\x0c\x86" + dtype + b"\x89" + content + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state
    return b"\x80\x02}q\x01(U\x04data" + array + b"U\x06labels](" + b"".join(b"K" + bytes([i]) for i in labels) + b"eu."


def test_python_2_pickles_are_read(tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(python2(ROWS[:2].tobytes(), bytes(LABELS[:2])))
    assert pickle.loads((tmp_path / "batch").read_bytes(), encoding="latin1")["labels"] == LABELS[:2]
    batch = read_pickle(tmp_path / "batch")
    assert batch["labels"] == LABELS[:2] and np.array_equal(batch["data"], ROWS[:2]) and batch["data"].dtype == np.uint8


def test_cifar100_uses_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    write(folder / "train", {b"data": ROWS, b"fine_labels": LABELS, b"coarse_labels": [0] * 10, b"filenames": [b"a"] * 10})
    write(folder / "meta", {b"fine_label_names": NAMES, b"coarse_label_names": ["all"]})
    array = read_images(tmp_path)
    assert same(array) and array.classes == tuple(NAMES)


class Evil:
    """Unpickled the usual way, it makes a file."""

    def __init__(self, path: Path, how: str) -> None:
        self.path, self.how = path, how

    def __reduce__(self) -> tuple:
        if self.how == "os.mkdir":
            return os.mkdir, (str(self.path),)
        return eval, (f"__import__('os').mkdir({str(self.path)!r})",)


@pytest.mark.parametrize(("how", "names"), [("os.mkdir", "posix.mkdir"), ("eval", "__builtin__.eval")])
@pytest.mark.parametrize("where", ["data_batch_4", "batches.meta"])
def test_pickles_execute_no_code(how: str, names: str, where: str, batches: Path) -> None:
    trap = batches / "trap"
    write(batches / where, {"data": ROWS[:2], "labels": [0, 1], "label_names": Evil(trap, how)})
    with pytest.raises(DataError, match=f"{where} is not a complete CIFAR batch .it requests {names}"):
        read_images(batches)
    assert not trap.exists()
    pickle.loads((batches / where).read_bytes())
    assert trap.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a complete CIFAR batch"),
        (b"PK\x03\x04", "not a complete CIFAR batch"),
        (pickle.dumps([1, 2]), "contains a list, not a dict"),
        (pickle.dumps({"data": ROWS[:2], "labels": [0, 1]}, 2)[:3000], "not a complete CIFAR batch"),
        (pickle.dumps({"data": np.array([{}, []], object), "labels": [0, 1]}, 2), "an array of O8, expected integers"),
        (pickle.dumps({"data": ROWS[:2].astype(np.float32), "labels": [0, 1]}, 2), "an array of f4, expected integers"),
        (pickle.dumps({"data": ROWS[:2, :100], "labels": [0, 1]}), r"must be uint8 \(N, 3072\), it is uint8 \(2, 100\)"),
        (pickle.dumps({"data": ROWS[:2].astype(np.int16), "labels": [0, 1]}), "it is int16"),
        (pickle.dumps({"labels": [0, 1]}), "it is NoneType"),
        (pickle.dumps({"data": ROWS[:2], "labels": [0]}), "2 images need 2 integers in 'labels', found 1"),
        (pickle.dumps({"data": ROWS[:2], "labels": [0, "1"]}), "found none"),
        (pickle.dumps({"data": ROWS[:2], "labels": [0, 10**30]}), "found none"),
        (pickle.dumps({"data": ROWS[:2], "labels": [0, 4]}), "labels must be 0 to .*, at most 4 classes; found 0 to 4"),
        (b"c_codecs\nencode\n(V\nVzip\ntR.", "'zip' is not a text encoding"),
        (b"cnumpy\nndarray\n.", "contains a type"),
        (pickle.dumps({"data": [ROWS[:2]], "labels": [0, 1]}), "it is list"),
        (python2(ROWS[:2].tobytes(), b"\0\1").replace(b"M\x00\x0c\x86", b"M\x00\x0d\x86"), "not a complete CIFAR batch"),
    ],
)
def test_damaged_and_invalid_batches_are_named(content: bytes, says: str, batches: Path) -> None:
    (batches / "data_batch_2").write_bytes(content)
    with pytest.raises(DataError, match=says) as error:
        read_images(batches)
    assert str(batches) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_missing_batch_is_named(name: str, batches: Path) -> None:
    (batches / name).unlink()
    with pytest.raises(DataError, match=f"cannot read .*{name}: No such file"):
        read_images(batches)


@pytest.mark.parametrize("names", [("images", "labels"), ("x_train", "y_train"), ("data", "fine_labels"), ("X", "y")])
@pytest.mark.parametrize("planar", [False, True])
def test_npz_of_pixels_is_read(names: tuple[str, str], planar: bool, tmp_path: Path) -> None:
    pixels, labels = IMAGES.transpose(0, 3, 1, 2) if planar else IMAGES, np.array(LABELS, np.uint8)
    np.savez_compressed(
        tmp_path / "train.npz", **dict(zip(names, (pixels, labels[:, None] if planar else labels), strict=True))
    )
    for path in (tmp_path / "train.npz", tmp_path):
        array = read_images(path)
        assert same(array) and array.classes == ("0", "1", "2", "3") and array.pixels.is_contiguous()


NUMBERS = np.array(LABELS)
GRAYS = IMAGES[..., 0]


@pytest.mark.parametrize(
    "arrays",
    [
        {"image": IMAGES, "label": NUMBERS},
        {"arr_0": IMAGES, "arr_1": NUMBERS},
        {"arr_0": NUMBERS, "arr_1": IMAGES},
        {"X": IMAGES.transpose(1, 2, 3, 0), "y": NUMBERS[:, None]},
        {"images": IMAGES.astype(np.int64), "labels": NUMBERS.astype(float)},
        {"train_images": IMAGES, "train_labels": np.eye(4)[NUMBERS], "val_images": IMAGES[:4], "val_labels": NUMBERS[:4]},
        {"x_train": IMAGES, "y_train": NUMBERS, "x_test": IMAGES[:2], "y_test": NUMBERS[:2], "labels": np.array(NAMES)},
        {"x_train": IMAGES, "y_train": NUMBERS, "labels": np.arange(10)},
        {"images": IMAGES, "y_train": NUMBERS},
        {"images": IMAGES, "labels": NUMBERS + 1},
    ],
)
def test_npz_variants_of_other_programs_are_read(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert same(read_images(tmp_path / "a.npz"))


@pytest.mark.parametrize("gray", [GRAYS, GRAYS[..., None], GRAYS[:, None]])
def test_gray_images_become_three_equal_channels(gray: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=gray, train_labels=np.array(NAMES)[NUMBERS])
    array = read_images(tmp_path / "a.npz")
    assert np.array_equal(array.pixels, GRAYS[..., None].repeat(3, 3)) and array.pixels.is_contiguous()
    assert array.labels.tolist() == LABELS and array.classes == tuple(NAMES)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cifar-10-python.tar.gz", gzip.compress(b"x", mtime=0), "packed by gzip: unpack it"),
        ("a.npz.gz", gzip.compress(b"x", mtime=0), "packed by gzip: unpack it"),
        ("a.npy", b"\x93NUMPY\1\0", "one array of numpy.save, without labels: write"),
        ("a.mat", b"MATLAB 5.0 MAT-file", r"a MATLAB file: write its images and labels with numpy.savez"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("a.parquet", b"PAR1", "a Parquet file"),
    ],
)
def test_other_file_formats_are_named(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} is {says}"):
        read_images(tmp_path / name)


def test_packed_archives_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("train/a/x.jpg", b"x")
    with pytest.raises(DataError, match=r"data.zip is a zip archive of other files, train/a/x.jpg: unpack it"):
        read_images(tmp_path / "data.zip")
    with pytest.raises(DataError, match=r"no training images.*found data.zip; data.zip is an archive, unpack it"):
        read_images(tmp_path)


def test_npz_of_jpegs_is_read(tmp_path: Path) -> None:
    files = [encoded(Image.fromarray(image)) for image in IMAGES]
    offsets = np.cumsum([0] + [len(file) for file in files]).astype(np.uint32)
    stored = {"data": np.frombuffer(b"".join(files), np.uint8), "offsets": offsets, "labels": LABELS}
    np.savez(tmp_path / "train_jpeg.npz", **stored)
    array = read_images(tmp_path, threads=2)
    assert array.pixels.shape == (10, 32, 32, 3) and array.labels.tolist() == LABELS
    assert np.array_equal(array.pixels[4].numpy(), np.asarray(Image.open(BytesIO(files[4]))))
    stored["data"] = stored["data"].copy()
    stored["data"][offsets[6] : offsets[7]] = 7
    np.savez(tmp_path / "train_jpeg.npz", **stored)
    with pytest.raises(DataError, match=r"cannot decode image 6 of .*train_jpeg.npz: not an image"):
        read_images(tmp_path)
    for wrong in (offsets[::-1], offsets + 1, offsets.astype(np.float32), offsets[:1], np.zeros_like(offsets)):
        np.savez(tmp_path / "train_jpeg.npz", **stored | {"offsets": wrong})
        with pytest.raises(DataError, match="offsets must increase"):
            read_images(tmp_path)


GOOD = {"images": IMAGES, "labels": np.array(LABELS)}


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": IMAGES}, "no images with labels: found images; expected x_train with y_train"),
        ({"labels": GOOD["labels"]}, "no images with labels: found labels"),
        (GOOD | {"images": IMAGES / 255}, r"images must be uint8 .* they are float64 \(10, 32, 32, 3\): write .255 . images"),
        (GOOD | {"images": ROWS}, r"they are uint8 \(10, 3072\): write images.reshape\(-1, 3, 32, 32\) for channel-first rows"),
        (GOOD | {"images": IMAGES[..., :2]}, r"they are uint8 \(10, 32, 32, 2\)"),
        (GOOD | {"images": IMAGES[:, :30]}, "all square, got 10 x 30 x 32 x 3"),
        (GOOD | {"images": IMAGES[:0], "labels": GOOD["labels"][:0]}, "at least one image"),
        (GOOD | {"labels": GOOD["labels"][:9]}, "10 images, but 9 labels"),
        (GOOD | {"labels": GOOD["labels"] / 2}, "labels must be integers"),
        (GOOD | {"labels": GOOD["labels"] - 1}, "found -1 to 2: remove images without a label"),
        (GOOD | {"labels": np.where(GOOD["labels"] > 2, 255, GOOD["labels"])}, "labels are 0 to 2, and 255, which marks"),
        (GOOD | {"labels": np.eye(4)[GOOD["labels"]] + np.eye(4)[0]}, "a row of labels has several"),
        (GOOD | {"x_train": IMAGES, "y_train": GOOD["labels"]}, "may be x_train and y_train or images and labels"),
        ({"arr_0": IMAGES, "arr_1": GOOD["labels"], "arr_2": IMAGES}, "no images with labels: found arr_0, arr_1, arr_2"),
        (GOOD | {"images": IMAGES.astype(np.int16) - 1}, "they are int16 .* from -1 to 254"),
        (GOOD | {"images": np.concatenate([IMAGES, GRAYS[..., None]], 3)}, "four channels may be RGBA or CMYK"),
        (GOOD | {"labels": GOOD["labels"] * 10**9}, "at most 10 classes; found 0 to 3000000000"),
        (GOOD | {"labels": np.array(NAMES * 2 + ["a", "b"], object)}, "not a complete .npz file of plain arrays"),
    ],
)
def test_invalid_npz_contents_are_named(arrays: dict[str, np.ndarray], says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=says) as error:
        read_images(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(error.value) and "\n" not in str(error.value)


def test_damaged_npz_is_rejected(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **GOOD)
    whole = (tmp_path / "a.npz").read_bytes()
    for content in (b"", whole[:1000], whole[: len(whole) - 10], whole[:2000] + b"\0" * 100 + whole[2100:]):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"not a complete .npz file"):
            read_images(tmp_path / "a.npz")


def test_encrypted_npz_is_rejected(tmp_path: Path) -> None:
    """Its members' flags say so."""
    np.savez(tmp_path / "a.npz", **GOOD)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = -1
        while (at := content.find(mark, at + 1)) >= 0:
            content[at + flags] |= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"not a complete .npz file .*encrypted"):
        read_images(tmp_path / "a.npz")


def test_damaged_lzma_npz_is_rejected(tmp_path: Path) -> None:
    pytest.importorskip("lzma")  # which not every Python has
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as archive:
        for name, array in GOOD.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.save(member, array)
    assert len(read_images(tmp_path / "a.npz"))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[60:200] = bytes(140)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"not a complete .npz file"):
        read_images(tmp_path / "a.npz")


@pytest.mark.parametrize("form", ["archive", "folder"])
def test_jpegs_too_large_when_decoded_are_rejected(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten black images of 512 pixels: 7.5 MiB of pixels in a few kB."""
    files = [encoded(Image.new("RGB", (512, 512)))] * 10
    if form == "archive":
        offsets = np.cumsum([0, *map(len, files)])
        blob = np.frombuffer(b"".join(files), np.uint8)
        np.savez(tmp_path / "a.npz", data=blob, offsets=offsets, labels=np.arange(10) % 2)
    else:
        for number, content in enumerate(files):
            path = tmp_path / "a.npz" / "train" / str(number % 2) / f"{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    monkeypatch.setattr("fastdarts.data.arrays.available_ram", lambda: 5 << 20)
    with pytest.raises(DataError, match=r"its images need 7.5 MiB, RAM has 5.0 MiB free"):
        read_images(tmp_path / "a.npz")


def test_too_large_arrays_are_rejected_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", **GOOD)
    monkeypatch.setattr("fastdarts.data.arrays.available_ram", lambda: 30000)
    monkeypatch.setattr("fastdarts.data.arrays.read_archive", lambda path: pytest.fail("it was read"))
    with pytest.raises(DataError, match=r"its images need 0.0 MiB, RAM has"):
        read_images(tmp_path / "a.npz")


def folder_of(root: Path) -> Path:
    """IMAGES as PNG files; by class, then by number."""
    for number, label in enumerate(LABELS):
        path = root / "train" / NAMES[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[number]).save(path)
    return root


def test_folder_numbering_matches_search_imagenet(tmp_path: Path) -> None:
    array = read_images(folder_of(tmp_path), threads=3)
    order = np.argsort(LABELS, kind="stable")
    assert array.pixels.equal(torch.from_numpy(IMAGES[order])) and array.classes == tuple(NAMES)
    assert array.files[0] == "train/cat/2.png" and array.labels.tolist() == sorted(LABELS)


def test_file_of_other_size_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path)
    Image.new("RGB", (32, 33)).save(tmp_path / "train/frog/8.png")
    with pytest.raises(DataError, match=r"train/frog/8.png has 32x33 pixels, .*train/cat/2.png 32x32: all must have the same"):
        read_images(tmp_path)
    (tmp_path / "train/frog/8.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot decode .*train/frog/8.png: not an image"):
        read_images(tmp_path)


def test_missing_paths_are_named(tmp_path: Path, batches: Path) -> None:
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar.gz").write_text("no archive")
    for path, says in (
        (tmp_path / "nowhere", "nowhere does not exist: give cifar-10-batches-py or"),
        (tmp_path / "empty", "has no training images: give .*; found nothing"),
        (tmp_path, "holds cifar-10-batches-py, cifar-100-python: give one of them"),
        (tmp_path / "text.tar.gz", "not a complete .npz file"),
        (batches / "data_batch_1", "not a complete .npz file .*: give a folder of CIFAR's python batches"),
        (tmp_path / "text.tar.gz" / "x", "does not exist"),
    ):
        with pytest.raises(DataError, match=says):
            read_images(path)


def test_fingerprint_covers_labels_and_pixels(batches: Path) -> None:
    first, again = read_images(batches), read_images(batches)
    assert first.sha256() == again.sha256()
    again.labels[3] += 1
    assert first.sha256() != again.sha256()
    again.labels[3] -= 1
    again.pixels[9, 31, 31, 2] += 1
    assert first.sha256() != again.sha256()


def test_sample_has_ten_classes_of_32_pixels(sample: Path) -> None:
    array = sample_images(sample.parent)
    assert array.pixels.shape == (1000, 32, 32, 3) and len(array.classes) == 10
    assert array.labels.bincount().tolist() == [100] * 10 and array.pixels.float().std() > 20


def test_splits_take_shares_of_each_class(batches: Path) -> None:
    labels = torch.arange(60) % 3
    labels[:6] = 2  # 16, 19 and 25 images, mixed
    array = ImageArray(Path(), ("a", "b", "c"), (), labels, torch.zeros(60, 1, 1, 3))
    train, val = subsets(array, 0.5, 0.25, seed=1)
    assert array.labels.bincount().tolist() == [18, 18, 24]
    assert array.labels[train].bincount().tolist() == [9, 9, 12] and array.labels[val].bincount().tolist() == [5, 5, 6]
    assert not set(train.tolist()) & set(val.tolist()) and train.tolist() == sorted(train.tolist())


# batches


PIXELS = torch.from_numpy(IMAGES)
ARRAY = Pixels(PIXELS, torch.tensor(LABELS))
COMMON = {"stream": Stream.TRAIN, "seed": 3, "batch_size": 4, "image_size": 32}


def cut(image: np.ndarray, top: int, left: int, size: int, border: int = 40) -> np.ndarray:
    """The same by padding the image with NumPy."""
    padded = np.pad(image, ((border, border), (border, border), (0, 0)))
    return padded[top + border : top + border + size, left + border : left + border + size]


def test_crop_windows_match_numpy() -> None:
    places = [(0, 0), (-4, 3), (4, -4), (-1, 0), (31, 31), (-31, 2), (33, 0), (-40, -40), (7, 9), (2, 40)]
    top, left = torch.tensor(places).unbind(1)
    index = torch.tensor([3, 3, 0, 9, 1, 2, 4, 5, 6, 7])
    for size in (32, 8, 1):
        found = windows(PIXELS, index, top, left, size)
        expected = [cut(IMAGES[i], *place, size) for i, place in zip(index.tolist(), places, strict=True)]
        assert found.dtype == torch.uint8 and np.array_equal(found.numpy(), np.stack(expected))


def test_crop_windows_do_not_synchronise() -> None:
    """On the meta device there are none: nothing here makes a GPU's host wait."""
    index, place = (torch.zeros(4, dtype=torch.int64, device="meta") for _ in range(2))
    assert windows(PIXELS.to("meta"), index, place, place, 24).shape == (4, 24, 24, 3)


def test_crop_positions_follow_random_words() -> None:
    """By hand: word * places / 2**32, rounded down, less the padding."""
    view, indices = View(32, 3, Stream.VAL, True, (1, 1)), torch.arange(10)
    words = random_words(3, Stream.VAL, 5, indices, Purpose.CROP, 2).tolist()
    expected = [[int(a / 2**32 * 9) - 4, int(b / 2**32 * 9) - 4] for a, b in words]
    assert corners(view, 5, indices, 32, 4).tolist() == expected
    assert corners(view, 5, indices, 32, 0).tolist() == [[0, 0]] * 10
    assert corners(View(24, 3, Stream.EVAL, False, (1, 1)), 5, indices, 32, 4).tolist() == [[4, 4]] * 10


def test_crop_positions_are_uniform() -> None:
    places = corners(View(32, 0, Stream.TRAIN, True, (1, 1)), 0, torch.arange(20000), 32, 4)
    counts = ((places[:, 0] + 4) * 9 + places[:, 1] + 4).bincount(minlength=81)
    assert len(counts) == 81 and counts.min() > 180 and counts.max() < 320  # 247 on average


def test_training_batches_are_padded_crops() -> None:
    loader = ArrayLoader(ARRAY, torch.arange(10), padding=4, **COMMON)
    with loader:
        for number in range(5):
            batch = next(loader)
            epoch, indices = loader.sampler.batch(number)
            assert batch.index.equal(indices) and batch.labels.tolist() == [LABELS[i] for i in indices]
            assert batch.flip.equal(loader.view.flips(epoch, indices)) and batch.images.is_contiguous()
            places = corners(loader.view, epoch, indices, 32, 4).tolist()
            expected = [cut(IMAGES[i], *place, 32) for i, place in zip(indices.tolist(), places, strict=True)]
            assert np.array_equal(batch.images.numpy(), np.stack(expected))


def take(count: int, state: dict | None = None, **more: Any) -> list:
    with ArrayLoader(ARRAY, torch.arange(10), padding=4, **COMMON | more) as loader:
        if state:
            loader.load_state_dict(state)
        return [next(loader) for _ in range(count)]


def test_loader_resumes_at_saved_position() -> None:
    with ArrayLoader(ARRAY, torch.arange(10), padding=4, **COMMON) as loader:
        for _ in range(3):
            next(loader)
        state = loader.state_dict()
    for a, b in zip(take(6)[3:], take(3, state), strict=True):
        assert all(x.equal(y) for x, y in zip(a, b, strict=True))


def test_two_ranks_see_images_of_one() -> None:
    whole, parts = take(5), [take(5, rank=rank, world_size=2) for rank in range(2)]
    for number, batch in enumerate(whole):
        for rank in range(2):
            for mine, all_of_it in zip(parts[rank][number], batch, strict=True):
                assert mine.equal(all_of_it[rank::2])


def test_evaluation_uses_whole_images() -> None:
    chosen = torch.tensor([8, 1, 5, 0, 3])
    order = shuffled(chosen.sort().values, Stream.EVAL)
    batches = list(ArrayEvalLoader(ARRAY, chosen, batch_size=2, image_size=32))
    assert torch.cat([b.index for b in batches]).equal(order) and not any(b.flip.any() for b in batches)
    assert torch.cat([b.images for b in batches]).equal(PIXELS[order])
    (middle,) = ArrayEvalLoader(ARRAY, chosen, batch_size=9, image_size=8)
    assert middle.images.equal(PIXELS[order, 12:20, 12:20])
    other = list(ArrayEvalLoader(ARRAY, chosen, batch_size=2, image_size=32, rank=1, world_size=2))
    assert [b.index.tolist() for b in other] == [[order[1]], [order[3]]]


@pytest.mark.slow
def test_real_cifar10_file_is_read(shared_data: Path) -> None:
    array = read_images(shared_data / "cifar10")
    assert array.pixels.shape == (50000, 32, 32, 3) and array.labels.bincount().tolist() == [5000] * 10
    mean, std = (f(array.pixels.double().flatten(0, 2) / 255, 0) for f in (torch.mean, torch.std))
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-3)
    assert std.tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=5e-3)
