"""Read one image file, decoded by Pillow or as bytes: the only module that opens image files."""

import os
import stat
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from fastdarts.data.errors import DataError, InputStopped, is_shortage, shortage
from fastdarts.quoting import quoted

KINDS = {  # directory entries with an image's name that are not regular files
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
SIXTEEN = {("I", "PNG"), ("I", "PPM")}  # (mode, format) of 16-bit grayscale that Pillow stores in 32 bits


def read_rgb(path: str, data: bytes | None = None) -> Image.Image:
    """Decode an image to 8-bit RGB from any mode (grayscale, CMYK, palette; alpha is dropped), the first frame of several.

    data  content of the file, if already read

    Equals torchvision's ImageFolder, Image.open(path).convert("RGB"): EXIF orientation and colour profiles are not applied.
    But 16-bit grayscale keeps its high byte, as Pillow does for 16-bit colours, where convert would clip it.
    Raises DataError, which names the file, if it cannot be read or decoded to its end.
    """
    try:
        with _opened(path) if data is None else BytesIO(data) as file, Image.open(file) as image:
            return _rgb(image)
    except Exception as error:  # any error of a decoder is a fault of this file
        raise DataError(f"cannot decode {quoted(path)}: {_reason(path, error)}") from error


def read_bytes(path: str) -> bytes:
    """Return the bytes of the file. Raises DataError, which names it, if it cannot be read."""
    try:
        with _opened(path) as file:
            return file.read()
    except OSError as error:
        raise DataError(f"cannot read {quoted(path)}: {_reason(path, error)}") from error


def examine(path: str) -> tuple[int, int] | str:
    """Return the (height, width) of read_rgb's image, or the reason why it would fail.

    A JPEG is read to its end but reconstructed at 1/8 of its size; other formats are fully decoded.
    """
    try:
        with _opened(path) as file, Image.open(file) as image:
            width, height = image.size
            reduced = image.draft(None, (1, 1)) is not None  # JPEG only
            pixels = _rgb(image)
            return (height, width) if reduced else (pixels.height, pixels.width)
    except Exception as error:
        return _reason(path, error)


def header_size(path: str) -> tuple[int, int] | str:
    """Return (height, width) from the file's header, equal to read_rgb's for a good file; or the reason why it has none."""
    try:
        with _opened(path) as file, Image.open(file) as image:
            return image.height, image.width
    except Exception as error:
        return _reason(path, error)


@contextmanager
def pillow_warnings() -> Generator[None]:
    """Raise for an image beyond Image.MAX_IMAGE_PIXELS, and silence Pillow's other warnings, inside the context.

    Python's warning filters are process-wide: enter it in a single thread.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode, image.format) in SIXTEEN:
        return image.convert("I").point(lambda gray: gray / 256).convert("RGB")
    return image.convert("RGB")


def _opened(path: str) -> BinaryIO:
    """Open the file unless it is empty. Only regular files are opened; others might block forever. Raises OSError."""
    status = os.stat(path)
    if kind := KINDS.get(stat.S_IFMT(status.st_mode)):
        raise OSError(0, f"{kind}, not a file")
    if not status.st_size:
        raise OSError(0, "empty file")
    return open(path, "rb", opener=_without_waiting)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe may have replaced the file meanwhile


def _reason(path: str, error: Exception) -> str:
    """Return the reason in one line without the path. Raises InputStopped if the machine ran out of a resource."""
    if isinstance(error, OSError) and is_shortage(error):
        raise InputStopped(f"cannot open {shortage(error)}") from error
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return "a broken link"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).splitlines()[0]
