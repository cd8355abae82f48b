"""Reading one image file, by Pillow or as it is: the only place that opens one."""

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

KINDS = {  # what bears an image's name and is no file
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
SIXTEEN = {("I", "PNG"), ("I", "PPM")}  # (mode, format) of 16-bit grays that Pillow keeps in 32 bits


def read_rgb(path: str, data: bytes | None = None) -> Image.Image:
    """The image in 8-bit RGB, whatever it is stored as (grayscale, CMYK, palette, alpha dropped), the first of several.

    data  the file's content, where it was read before

    As torchvision's ImageFolder reads it, Image.open(path).convert("RGB"): EXIF orientation and colour profiles are not
    applied. But 16-bit grays keep their high byte, as Pillow does with 16-bit colours, where convert would clip them.
    Raises DataError, which names the file, if it cannot be read or decoded to its end.
    """
    try:
        with _opened(path) if data is None else BytesIO(data) as file, Image.open(file) as image:
            return _rgb(image)
    except Exception as error:  # whatever a decoder raises is about this file
        raise DataError(f"cannot decode {quoted(path)}: {_reason(path, error)}") from error


def read_bytes(path: str) -> bytes:
    """The file as it is. Raises DataError, which names it, if it cannot be read."""
    try:
        with _opened(path) as file:
            return file.read()
    except OSError as error:
        raise DataError(f"cannot read {quoted(path)}: {_reason(path, error)}") from error


def examine(path: str) -> tuple[int, int] | str:
    """(height, width) of what read_rgb would give, or why it would fail.

    A JPEG's data is read to its end, but only 1/8 of the size is reconstructed; anything else is decoded as a whole.
    """
    try:
        with _opened(path) as file, Image.open(file) as image:
            width, height = image.size
            reduced = image.draft(None, (1, 1)) is not None  # of JPEG alone
            pixels = _rgb(image)
            return (height, width) if reduced else (pixels.height, pixels.width)
    except Exception as error:
        return _reason(path, error)


def header_size(path: str) -> tuple[int, int] | str:
    """(height, width) as the file's header says, which is what read_rgb gives of a good file; or why there is none."""
    try:
        with _opened(path) as file, Image.open(file) as image:
            return image.height, image.width
    except Exception as error:
        return _reason(path, error)


@contextmanager
def pillow_warnings() -> Generator[None]:
    """Inside, an image beyond Image.MAX_IMAGE_PIXELS is an error and Pillow's other warnings are not printed.

    For the whole process, since that is what Python's filters of warnings are for: enter it in one thread alone.
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
    """The file, unless it is empty. What is no file is not opened, since it might never answer. Raises OSError."""
    status = os.stat(path)
    if kind := KINDS.get(stat.S_IFMT(status.st_mode)):
        raise OSError(0, f"{kind}, not a file")
    if not status.st_size:
        raise OSError(0, "empty file")
    return open(path, "rb", opener=_without_waiting)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe may have taken the file's place meanwhile


def _reason(path: str, error: Exception) -> str:
    """One line without the path. Raises InputStopped where the machine has run out of something."""
    if isinstance(error, OSError) and is_shortage(error):
        raise InputStopped(f"cannot open {shortage(error)}") from error
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return "a broken link"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).splitlines()[0]
