"""Files of every coding that datasets hold under the name of a JPEG, made from one picture."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms


def encoded(image: Image.Image, **options: object) -> bytes:
    """The image as a file's bytes, JPEG of quality 90 by default."""
    buffer = io.BytesIO()
    image.save(buffer, **(options if "format" in options else {"format": "JPEG", "quality": 90} | options))
    return buffer.getvalue()


def frame_header(data: bytes) -> int:
    """Where a JPEG's frame header (SOF0 to SOF2) begins: marker, length, precision, height, width, components."""
    at = 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at


def lying(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header claims another size than its data have."""
    at = frame_header(data) + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def png(pixels: np.ndarray, colour: int, width: int | None = None) -> bytes:
    """A 16-bit PNG of uint16 (H, W) or (H, W, C), whose header may lie about its width."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width or pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def of_440(photo: Image.Image) -> bytes:
    """A JPEG of 4:4:0 from one of 4:2:2, whose blocks are as many where sides are equal: shuffled, but whole."""
    data = bytearray(encoded(photo.resize((64, 64)), subsampling="4:2:2"))
    at = frame_header(bytes(data)) + 11
    assert data[at] == 0x21
    data[at] = 0x12
    return bytes(data)


def encodings(photo: Image.Image) -> dict[str, bytes]:
    """Every one decodes; name -> bytes."""
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    palette = photo.quantize(16)
    other = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    ramp = photo.convert("L")
    return {
        "plain": encoded(photo),
        "gray": encoded(ramp),
        "cmyk": encoded(photo.convert("CMYK")),
        "rgb_coded": encoded(photo, keep_rgb=True),
        "progressive": encoded(photo, progressive=True),
        "restarts": encoded(photo, restart_marker_rows=1),
        "of_444": encoded(photo, subsampling="4:4:4"),
        "of_422": encoded(photo, subsampling="4:2:2"),
        "of_440": of_440(photo),
        "exif_rotated": encoded(photo, exif=exif),
        "exif_broken": encoded(photo, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"),
        "icc": encoded(photo, icc_profile=profile),
        "tail": encoded(photo) + b"\0trailing bytes" * 100,
        "thumb": encoded(photo.resize((9, 7))),
        "png": encoded(photo, format="PNG"),
        "png_1bit": encoded(photo.convert("1"), format="PNG"),
        "png_gray_alpha": encoded(photo.convert("LA"), format="PNG"),
        "png_alpha": encoded(photo.convert("RGBA"), format="PNG"),
        "png_palette_alpha": encoded(palette, format="PNG", transparency=bytes(range(16))),
        "png_colour_16": png(np.asarray(photo).astype(np.uint16) * 200, 2),
        "webp": encoded(photo, format="WEBP"),
        "webp_lossless_alpha": encoded(photo.convert("RGBA"), format="WEBP", lossless=True),
        "bmp": encoded(photo, format="BMP"),
        "ppm": encoded(photo, format="PPM"),
        "gif_frames": encoded(palette, format="GIF", save_all=True, append_images=[other.quantize(16)]),
        "tiff_frames": encoded(photo, format="TIFF", save_all=True, append_images=[other]),
        "tiff_rotated": encoded(photo, format="TIFF", exif=exif),
        "tiff_lzw": encoded(photo, format="TIFF", compression="tiff_lzw"),
    }
