"""Recognition of plain JPEG headers, and their image size."""

import io

import pytest
from PIL import Image

from fastdarts.data.jpeg import plain_size
from tests.data.conftest import picture


def saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "JPEG"} | options))
    return buffer.getvalue()


PHOTO = picture(50, 30, 0)
EXIF = Image.Exif()
EXIF[0x0112] = 6  # to be turned by a quarter


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:4:4"},
        {"exif": EXIF},
        {"icc_profile": b"a profile" * 9000},  # in two segments
        {"comment": b"\xff\xc0 is not a marker here"},
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_plain_jpegs_are_recognised(options: dict[str, object]) -> None:
    data = saved(PHOTO, **options)
    assert plain_size(data) == (30, 50)
    assert plain_size(saved(PHOTO.convert("L"), **options | {"subsampling": -1})) == (30, 50)
    assert plain_size(data + b"\0trailing bytes") == (30, 50)
    assert plain_size(data[:2] + b"\xff\xff" + data[2:]) == (30, 50)  # padding before a marker


def adobe(transform: int) -> bytes:
    """A segment that names the colours."""
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])


def test_other_files_are_not_plain() -> None:
    data = saved(PHOTO)
    assert plain_size(saved(PHOTO.convert("CMYK"))) is None
    assert plain_size(saved(PHOTO, keep_rgb=True)) is None
    assert plain_size(data[:2] + adobe(1) + data[2:]) == (30, 50)
    assert plain_size(data[:2] + adobe(0) + data[2:]) is None
    gray = saved(PHOTO.convert("L"))
    assert plain_size(gray[:2] + adobe(0) + gray[2:]) == (30, 50)
    frame = data.index(b"\xff\xc0")
    for offset, value in ((1, 0xC9), (4, 12), (6, 0), (10, 82)):  # arithmetic, 12 bits, height 0, a component "R"
        other = bytearray(data)
        other[frame + offset] = value
        assert plain_size(bytes(other)) is None, offset
    for kind in ("PNG", "GIF", "WEBP", "BMP"):
        assert plain_size(saved(PHOTO, format=kind)) is None
    assert plain_size(b"") is None and plain_size(b"<html>Not found</html>") is None


def test_truncated_jpeg_is_not_plain() -> None:
    """Also where a thumbnail within the header has an end marker."""
    for data in (saved(PHOTO), saved(PHOTO, progressive=True), saved(PHOTO, comment=saved(PHOTO.resize((20, 10))))):
        assert [plain_size(data[:end]) for end in range(len(data))] == [None] * len(data)
        assert plain_size(data) == (30, 50)
