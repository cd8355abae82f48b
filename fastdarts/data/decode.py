"""Reading one image file, by Pillow or as it is: the only place that opens one."""

import os
from io import BytesIO
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from fastdarts.data.errors import DataError


def read_rgb(path: str, data: bytes | None = None) -> Image.Image:
    """The image in 8-bit RGB, whatever it is stored as (grayscale, CMYK, palette, alpha dropped), from `data` if read before.

    As torchvision's ImageFolder reads it: EXIF orientation and colour profiles are not applied.
    Raises DataError, which names the file, if it cannot be read or decoded to its end.
    """
    try:
        with Image.open(path if data is None else BytesIO(data)) as image:
            return image.convert("RGB")
    except Exception as error:  # whatever a decoder raises is about this file
        raise DataError(f"cannot decode {path}: {_reason(path, error)}") from error


def read_bytes(path: str) -> bytes:
    """The file as it is. Raises DataError, which names it, if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def fault(path: str) -> str | None:
    """Why the file does not decode, or None. A JPEG's data is read to its end, but only 1/8 of the size is reconstructed.

    Raises DataError if it cannot even be opened: that says nothing about the image, and is for the user to mend.
    """
    with _opened(path) as file:
        try:
            with Image.open(file) as image:
                image.draft(None, (1, 1))
                image.convert("RGB")
        except Exception as error:  # whatever a decoder raises is about this file
            return _reason(path, error)
    return None


def _opened(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise DataError(f"{path} is listed but not there (a broken link?): mend it or take it away") from error
    except PermissionError as error:
        raise DataError(f"{path} may not be read: change its permissions or take it away") from error
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}") from error


def _reason(path: str, error: Exception) -> str:
    """One line without the path."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image" if os.path.getsize(path) else "empty file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).splitlines()[0]
