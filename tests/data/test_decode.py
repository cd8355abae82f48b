"""Every encoding gives Pillow's pixels; verification and loading use the same reader."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdarts.data import DataError
from fastdarts.data.decode import examine, header_size, pillow_warnings, read_rgb
from tests.data.encodings import encoded, encodings, lying, png


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Smooth, 240 x 180, RGB."""
    y, x = np.mgrid[0:180, 0:240] / 40
    return Image.fromarray((127 * (1 + np.stack((np.sin(x), np.cos(x + y), np.sin(x * y)), -1))).astype(np.uint8))


def by_pillow(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))


def test_all_encodings_match_pillow(photo: Image.Image, tmp_path: Path) -> None:
    formats = set()
    for name, data in encodings(photo).items():
        path = tmp_path / f"{name}.JPEG"
        path.write_bytes(data)
        expected = by_pillow(path)
        assert np.array_equal(np.asarray(read_rgb(str(path))), expected), name
        with pillow_warnings():
            assert examine(str(path)) == header_size(str(path)) == expected.shape[:2], name
        with Image.open(path) as image:
            formats.add(image.format)
    assert formats == {"JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF", "TIFF"}


def test_encoders_write_named_formats(photo: Image.Image, tmp_path: Path) -> None:
    files = encodings(photo)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    opened = {name: Image.open(tmp_path / name) for name in files}
    assert opened["rgb_coded"].info["adobe_transform"] == 0 and opened["cmyk"].mode == "CMYK"
    assert [(v, h) for _, h, v, _ in opened["of_440"].layer] == [(2, 1), (1, 1), (1, 1)]
    assert opened["progressive"].info["progressive"] and opened["icc"].info["icc_profile"]
    assert opened["exif_rotated"].getexif()[0x0112] == 6 and opened["exif_rotated"].size == photo.size
    assert opened["gif_frames"].n_frames == opened["tiff_frames"].n_frames == 2
    assert opened["png_palette_alpha"].mode == "P"
    for image in opened.values():
        image.close()


def test_first_frame_is_read(photo: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "a.JPEG").write_bytes(encodings(photo)["tiff_frames"])
    assert np.array_equal(np.asarray(read_rgb(str(tmp_path / "a.JPEG"))), np.asarray(photo))


def test_gray_and_cmyk_become_rgb(photo: Image.Image, tmp_path: Path) -> None:
    for mode in ("L", "CMYK", "RGB"):
        (tmp_path / f"{mode}.JPEG").write_bytes(encoded(photo.convert(mode), quality=95, subsampling=0))
        pixels = np.asarray(read_rgb(str(tmp_path / f"{mode}.JPEG")), np.int16)
        assert pixels.shape == (180, 240, 3)
        expected = np.asarray(photo.convert(mode).convert("RGB"), np.int16)
        assert abs(pixels - expected).mean() < 3  # coding alone


def test_16_bit_grays_keep_their_high_byte(tmp_path: Path) -> None:
    """All 65536 values, in every file that can hold them; where Pillow's convert would make nearly all of them white."""
    gray = np.arange(65536, dtype=np.uint16).reshape(128, 512)
    files = {
        "png": png(gray, 0),
        "png_alpha": png(np.stack([gray, gray[::-1]], -1), 4),
        "png_colour": png(np.stack([gray] * 3, -1), 2),
        "pgm": b"P5 512 128 65535\n" + gray.astype(">u2").tobytes(),
        "tiff": encoded(Image.fromarray(gray), format="TIFF"),
    }
    for name, data in files.items():
        path = tmp_path / f"{name}.JPEG"
        path.write_bytes(data)
        pixels = np.asarray(read_rgb(str(path)))
        assert np.array_equal(pixels, np.stack([gray >> 8] * 3, -1)), name
        assert examine(str(path)) == (128, 512)
    assert (by_pillow(tmp_path / "png.JPEG") == 255).mean() > 0.99


def test_invalid_headers_give_one_line_errors(photo: Image.Image, tmp_path: Path) -> None:
    """One line each, and never a different answer from the loaders' reader."""
    whole = encoded(photo)
    files = {
        "enormous": lying(whole, 65500, 65500),
        "large": lying(whole[:-2], 2000, 1500),
        "small": lying(whole, 100, 50),
        "flat": lying(whole, 240, 0),
        "png": png(np.zeros((50, 60), np.uint16), 0, width=3000),
    }
    found = {}
    for name, data in files.items():
        path = tmp_path / f"{name}.JPEG"
        path.write_bytes(data)
        with pillow_warnings():
            found[name] = examine(str(path))
        if isinstance(found[name], str):
            with pytest.raises(DataError) as error:
                read_rgb(str(path))
            assert str(error.value) == f"cannot decode {path}: {found[name]}" and "\n" not in found[name]
        else:
            assert found[name] == read_rgb(str(path)).size[::-1]
    assert "exceeds limit" in found["enormous"] and "truncated" in found["large"] and "truncated" in found["png"]
    assert found["small"] == (50, 100) and isinstance(found["flat"], str)


def test_images_beyond_pillow_limit_are_rejected(photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it would only warn too; the reader itself goes by Pillow's error alone."""
    path = tmp_path / "a.JPEG"
    path.write_bytes(encoded(photo))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 240 * 180)
    with pillow_warnings():
        assert examine(str(path)) == (180, 240)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 240 * 180 - 1)
    with pillow_warnings():
        assert "Image size (43200 pixels) exceeds limit of 43199" in examine(str(path))
    with pytest.warns(Image.DecompressionBombWarning):
        assert read_rgb(str(path)).size == photo.size
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 240 * 180 // 2 - 1)
    with pytest.raises(DataError, match=r"cannot decode .*a\.JPEG: Image size \(43200 pixels\) exceeds limit"):
        read_rgb(str(path))


def test_pillow_warnings_are_silenced(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.JPEG"
    path.write_bytes(encodings(photo)["png_palette_alpha"])
    with pytest.warns(UserWarning, match="Transparency"):
        examine(str(path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pillow_warnings():
            assert examine(str(path)) == (180, 240)
    assert not caught


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_truncation_is_detected_anywhere(progressive: bool, subsampling: int, photo: Image.Image, tmp_path: Path) -> None:
    """All cuts but the last four bytes (end marker and padding), and never a different answer from a full decode."""
    data = encoded(photo, progressive=progressive, subsampling=subsampling)
    path = tmp_path / "cut.JPEG"
    for size in [*range(0, len(data) - 4, 97), *range(len(data) - 40, len(data) - 4)]:
        path.write_bytes(data[:size])
        assert isinstance(examine(str(path)), str), f"{size} of {len(data)} bytes"
    for size in range(len(data) - 4, len(data) + 1):
        path.write_bytes(data[:size])
        assert (not isinstance(examine(str(path)), str)) == decodes(path)
    assert examine(str(path)) == (180, 240)


def decodes(path: Path) -> bool:
    """Whether the loaders' reader takes it."""
    try:
        read_rgb(str(path))
    except DataError:
        return False
    return True


def test_real_unusual_files_are_decoded(shared_data: Path) -> None:
    """Progressive, 4:2:2, 4:4:0, invalid EXIF, ICC, trailing bytes, from 75 x 56 to 2848 x 2136, as the manifest says."""
    sample = shared_data / "imagenet_sample"
    lines = [line.split(",") for line in (sample / "manifest.csv").read_text().splitlines()]
    rows = [dict(zip(lines[0], line, strict=False)) for line in lines[1:] if line[0].startswith("odd/")]
    assert len(rows) == 33
    for row in rows:
        path = sample / row["path"]
        expected = by_pillow(path)
        assert expected.shape == (int(row["height"]), int(row["width"]), 3)
        assert np.array_equal(np.asarray(read_rgb(str(path))), expected)
        assert examine(str(path)) == header_size(str(path)) == expected.shape[:2]
