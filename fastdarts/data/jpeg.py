"""The header of a JPEG file: its size, and whether every decoder makes the same RGB of it."""

from struct import error as StructError
from struct import unpack_from

START, ADOBE, SCAN = 0xD8, 0xEE, 0xDA
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; all Huffman
OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)  # lossless, hierarchical, arithmetic
YCBCR = 1  # Adobe's number


def plain_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) as stored, if `data` is a plain JPEG: 8 bits, Huffman coded, grayscale or YCbCr. Else None.

    The three components of a plain file are numbered 1, 2, 3 and no marker calls them anything but YCbCr: of other files
    decoders must guess the colours (RGB-coded, CMYK, YCCK), and may guess differently. Sampling, EXIF and colour profiles
    are not looked at. Only the header is read, so a plain file may be truncated.
    """
    try:
        return _size(data)
    except (IndexError, StructError):  # it ends within the header
        return None


def _size(data: bytes) -> tuple[int, int] | None:
    if data[:2] != bytes((0xFF, START)):
        return None
    at, size, transform = 2, None, YCBCR
    while True:
        byte, marker = data[at], data[at + 1]
        if byte != 0xFF:
            return None
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == SCAN:
            return size if transform == YCBCR else None
        if marker in FRAMES:
            bits, height, width, components = unpack_from(">BHHB", data, at + 4)
            numbers = data[at + 10 : at + 10 + 3 * components : 3]
            if bits != 8 or not height or (components != 1 and numbers != b"\1\2\3"):
                return None
            size = height, width
            if components == 1:
                return size
        elif marker in OTHER_FRAMES:
            return None
        elif marker == ADOBE and data[at + 4 : at + 9] == b"Adobe":
            transform = data[at + 15]
        at += 2 + unpack_from(">H", data, at + 2)[0]
