"""Which files are found bad, and that the loaders' reader agrees."""

import io
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdarts.data import DataError, ImageIndex, verify
from fastdarts.data.decode import fault, read_rgb

Tree = Callable[..., Path]


def encoded(image: Image.Image, **options: object) -> bytes:
    """The image as a file's bytes, JPEG unless told otherwise."""
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "JPEG", "quality": 90} | options))
    return buffer.getvalue()


@pytest.fixture
def photo() -> Image.Image:
    """Smooth, 240 x 180, RGB."""
    y, x = np.mgrid[0:180, 0:240] / 40
    return Image.fromarray((127 * (1 + np.stack((np.sin(x), np.cos(x + y), np.sin(x * y)), -1))).astype(np.uint8))


def test_good_and_bad(tree: Tree, photo: Image.Image) -> None:
    root = tree(a=3)
    folder = root / "train/a"
    good = {
        "cmyk.JPEG": encoded(photo.convert("CMYK")),
        "gray.JPEG": encoded(photo.convert("L")),
        "png.JPEG": encoded(photo, format="PNG"),
        "webp.JPEG": encoded(photo, format="WEBP"),
        "palette.JPEG": encoded(photo.convert("P"), format="GIF"),
        "alpha.png": encoded(photo.convert("RGBA"), format="PNG"),
        "progressive.JPEG": encoded(photo, progressive=True),
        "tail.JPEG": encoded(photo) + b"\0trailing bytes",
    }
    bad = {
        "zempty.JPEG": (b"", "empty file"),
        "zhalf.JPEG": (encoded(photo)[:2000], "truncated"),
        "zhtml.JPEG": (b"<html>Not found</html>", "not an image"),
        "zpng.png": (encoded(photo, format="PNG")[:3000], "truncated"),
    }
    for name, data in good.items() | {name: data for name, (data, _) in bad.items()}.items():
        (folder / name).write_bytes(data)
    index = ImageIndex.from_root(root)
    seen = []
    kept, faults = verify(index, torch.arange(len(index)), 2, lambda done, total: seen.append((done, total)))
    assert [name for name, _ in faults] == [f"train/a/{name}" for name in sorted(bad)]
    for name, reason in faults:
        assert bad[Path(name).name][1] in reason and "\n" not in reason
    assert {Path(index.files[i]).name for i in kept.tolist()} == good.keys() | {f"a_{i}.JPEG" for i in range(3)}
    assert seen[-1] == (len(index), len(index))
    for i in kept.tolist():
        assert read_rgb(index.path(i)).mode == "RGB"
    for name, _ in faults:
        with pytest.raises(DataError, match=f"cannot decode .*{name}"):
            read_rgb(str(root / name))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_truncation_anywhere(progressive: bool, subsampling: int, photo: Image.Image, tmp_path: Path) -> None:
    """All cuts but the last four bytes (end marker and padding), and never a different answer from a full decode."""
    data = encoded(photo, progressive=progressive, subsampling=subsampling)
    path = tmp_path / "cut.JPEG"
    for size in [*range(0, len(data) - 4, 97), *range(len(data) - 40, len(data) - 4)]:
        path.write_bytes(data[:size])
        assert fault(str(path)) is not None, f"{size} of {len(data)} bytes"
    for size in range(len(data) - 4, len(data) + 1):
        path.write_bytes(data[:size])
        assert (fault(str(path)) is None) == decodes(path)
    assert fault(str(path)) is None


def decodes(path: Path) -> bool:
    """Whether the loaders' reader takes it."""
    try:
        read_rgb(str(path))
    except DataError:
        return False
    return True


def test_result_does_not_depend_on_workers(tree: Tree) -> None:
    root = tree(a=150)
    for i in range(0, 150, 7):
        (root / f"train/a/a_{i}.JPEG").write_bytes(b"")
    index = ImageIndex.from_root(root)
    backwards = torch.arange(150).flip(0)
    one, four = verify(index, backwards, 1), verify(index, backwards, 4)
    assert one[0].equal(four[0]) and one[1] == four[1] and len(one[1]) == 22
    assert one[0].equal(one[0].sort(descending=True).values)
    assert verify(index, backwards[:0], 2)[0].shape == (0,)


def test_unreadable_file(public: Path, nobody: Callable[[], AbstractContextManager[None]], photo: Image.Image) -> None:
    (public / "train/a").mkdir(parents=True)
    for name in ("a.JPEG", "b.JPEG"):
        (public / "train/a" / name).write_bytes(encoded(photo))
    os.chmod(public / "train/a/b.JPEG", 0)
    index = ImageIndex.from_root(public)
    with nobody(), pytest.raises(DataError, match=r"train/a/b\.JPEG may not be read"):
        verify(index, torch.arange(2), 1)


def test_broken_link(public: Path, photo: Image.Image) -> None:
    (public / "train/a").mkdir(parents=True)
    (public / "train/a/a.JPEG").write_bytes(encoded(photo))
    (public / "train/a/b.JPEG").symlink_to(public / "nowhere.JPEG")
    index = ImageIndex.from_root(public)
    with pytest.raises(DataError, match=r"train/a/b\.JPEG is listed but not there"):
        verify(index, torch.arange(2), 2)


def test_exif_orientation_is_not_applied(photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    (tmp_path / "a.JPEG").write_bytes(encoded(photo, exif=exif))
    assert read_rgb(str(tmp_path / "a.JPEG")).size == photo.size


def test_gray_and_cmyk_become_rgb(photo: Image.Image, tmp_path: Path) -> None:
    for mode in ("L", "CMYK", "RGB"):
        (tmp_path / f"{mode}.JPEG").write_bytes(encoded(photo.convert(mode), quality=95, subsampling=0))
        pixels = np.asarray(read_rgb(str(tmp_path / f"{mode}.JPEG")), np.int16)
        assert pixels.shape == (180, 240, 3)
        expected = np.asarray(photo.convert(mode).convert("RGB"), np.int16)
        assert abs(pixels - expected).mean() < 3  # coding alone


def test_real_odd_files(shared_data: Path, tmp_path: Path) -> None:
    """Progressive, 4:4:0, invalid EXIF, ICC, trailing bytes, from 75 x 56 to 2848 x 2136: all decode."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train/odd").symlink_to((shared_data / "imagenet_sample/odd").resolve())
    index = ImageIndex.from_root(tmp_path)
    good, bad = verify(index, torch.arange(len(index)), 2)
    assert len(good) == 33 and not bad
    for i in good.tolist():
        assert np.asarray(read_rgb(index.path(i))).shape[2] == 3
